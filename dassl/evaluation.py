"""The evaluator of a test: accuracy, error rate and macro-F1 in percent.

torch computes the few sums. scikit-learn gives equal numbers, but takes a second to import.
"""

from typing import Any

import torch
from yacs.config import CfgNode

from dassl.extras.distributed import gathered
from dassl.utils import Registry, UserError

EVALUATOR_REGISTRY = Registry("evaluator")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Returns the evaluator TEST.EVALUATOR. Raises UserError for an unknown name."""
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)


@EVALUATOR_REGISTRY.register()
class Classification:
    """Collects labels and predictions in `y_true` and `y_pred`, in the order of processing."""

    def __init__(self, cfg: CfgNode, **kwargs: Any) -> None:
        self.reset()

    def reset(self) -> None:
        self.y_true: list[int] = []
        self.y_pred: list[int] = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add logits `mo [batch, n_cls]` and labels `gt [batch]`."""
        self.y_true += gt.tolist()
        self.y_pred += mo.argmax(dim=1).tolist()

    def gather(self) -> None:
        """Adds what the other processes of the run have processed."""
        self.y_true = [label for part in gathered(self.y_true) for label in part]
        self.y_pred = [label for part in gathered(self.y_pred) for label in part]

    def evaluate(self) -> dict[str, float]:
        """Returns the results by name. `trainer.test()` returns the first one.

        Raises:
            UserError: no image was processed.
        """
        if not self.y_true:
            raise UserError("nothing to evaluate: no image was processed")
        n = max(max(self.y_true), max(self.y_pred)) + 1
        true, pred = torch.tensor(self.y_true), torch.tensor(self.y_pred)
        hits, n_true, n_pred = (torch.bincount(x, minlength=n).double() for x in (true[true == pred], true, pred))
        correct, total = int(hits.sum()), len(self.y_true)
        accuracy = 100.0 * correct / total
        results = {
            "accuracy": accuracy,
            "error_rate": 100.0 - accuracy,
            "macro_f1": 100.0 * (2 * hits / (n_true + n_pred))[n_true > 0].mean().item(),
        }
        print(
            f"=> result\n* total: {total:,}\n* correct: {correct:,}\n* accuracy: {accuracy:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n* macro_f1: {results['macro_f1']:.1f}%"
        )
        return results
