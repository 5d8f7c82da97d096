"""The numbers that TensorBoard gets, also to MLflow and Weights & Biases: TRAIN.LOGGERS "mlflow wandb".

Both read their own environment variables: where they write to (MLFLOW_TRACKING_URI, WANDB_MODE), and which experiment
or project it belongs to. A run has the name of its directory.
"""

import importlib.util
from typing import Any

from yacs.config import CfgNode

from dassl.limits import Limit, limit
from dassl.utils import UserError


class MLflow:
    """A run of MLflow, with the part of TensorBoard's SummaryWriter that the engine calls."""

    def __init__(self, cfg: CfgNode, params: dict[str, Any]) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.start_run(run_name=cfg.OUTPUT_DIR)
        mlflow.log_params(params)

    def add_scalar(self, tag: str, value: float, step: int | None) -> None:
        self.mlflow.log_metric(tag, float(value), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class WeightsAndBiases:
    """The same of Weights & Biases."""

    def __init__(self, cfg: CfgNode, params: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(name=cfg.OUTPUT_DIR, config=params)

    def add_scalar(self, tag: str, value: float, step: int | None) -> None:
        self.run.log({tag: float(value), "step": step})

    def close(self) -> None:
        self.run.finish()


TRACKERS = {"mlflow": MLflow, "wandb": WeightsAndBiases}
NAMES: Limit = limit(lambda text: set(text.split()) <= TRACKERS.keys(), f"words out of {', '.join(TRACKERS)}")


class Several:
    """Writers as one."""

    def __init__(self, writers: list[Any]) -> None:
        self.writers = writers

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        for writer in self.writers:
            writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        for writer in self.writers[:1]:  # TensorBoard's; the others write at once
            writer.flush()

    def close(self) -> None:
        while self.writers:  # once each: a second end of a run is an error
            self.writers.pop().close()


def check_trackers(cfg: CfgNode) -> None:
    """UserError: one of TRAIN.LOGGERS is not installed."""
    missing = [name for name in cfg.TRAIN.LOGGERS.split() if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"TRAIN.LOGGERS names {missing[0]}, which is not installed: pip install {missing[0]}")


def with_trackers(writer: Any, cfg: CfgNode, params: dict[str, Any]) -> Any:
    """TensorBoard's writer and those of TRAIN.LOGGERS as one.

    Args:
        params: what the trackers store of the config, by dotted key.
    """
    names = dict.fromkeys(cfg.TRAIN.LOGGERS.split())
    return Several([writer, *(TRACKERS[name](cfg, params) for name in names)]) if names else writer
