"""Trainers on a DataManager: `SimpleTrainer` builds, saves, resumes and tests; `TrainerX` runs an epoch.

A method subclasses TrainerX and gives `build_model` and `forward_backward`. A rolling checkpoint is written
after every epoch, the last two kept until the run is finished; those of TRAIN.CHECKPOINT_FREQ and of the last epoch
stay. Interrupted by a signal, a run leaves one of the epoch's middle. A run goes on from any of them to the same bits.
"""

import datetime
import math
import os.path as osp
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.config import flatten
from dassl.data import DataManager
from dassl.data.data_manager import order_of
from dassl.evaluation import build_evaluator
from dassl.extras.distributed import gathered, is_main, local_device, summed, use_exact_convolutions
from dassl.extras.features import with_features, with_views
from dassl.extras.interrupts import Interrupted, raise_again, uninterrupted
from dassl.extras.trackers import check_trackers, with_trackers
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    UserError,
    derive_seed,
    mkdir_if_missing,
    print_to_console,
    print_to_file,
    random_state,
    set_random_seed,
    set_random_state,
    with_progress,
)

from .parallel import ParallelTrainer


class SimpleTrainer(ParallelTrainer):
    """After `train()` and `test()`: `results` holds the evaluator's numbers by split, and `timing` `train_seconds` (all
    epochs, earlier sessions of a resumed run included), `step_seconds` (the median step of this session, loading apart)
    and `test_images_per_second` (`kept_test_images_per_second` if image features were read); `tested` the images'
    paths, in the order of the evaluator's predictions.
    """

    model: nn.Module
    train_loader_x: Any
    lab2cname: dict[int, str]

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        self.cfg = cfg
        use_exact_convolutions()
        self.device = local_device(cfg.USE_CUDA)
        self.max_epoch: int = cfg.OPTIM.MAX_EPOCH
        self.output_dir: str = cfg.OUTPUT_DIR
        self.best_result = -float("inf")
        self.start_batch = 0  # the first epoch's, when it is resumed in its middle
        self.batches_done = 0  # of an epoch that is not saved yet
        self.unseen: list[tuple[int, list[str], dict[str, Any]]] = []  # steps not looked at: batch, files, summary
        self._random: dict[str, Any] = {}
        self.results: dict[str, dict[str, float]] = {}
        self.timing: dict[str, float] = {}
        self.step_times: list[float] = []
        self.tested: list[str] = []
        self.bar: Any = None  # of training
        self.build_data_loader()
        self.build_model()
        self.train_loader_x = with_views(self, self.train_loader_x)
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise UserError where `cfg` does not suit the trainer (optional)."""

    def build_data_loader(self) -> None:
        """Make the loaders; a replacement sets the same attributes (`dm` is optional)."""
        self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.val_loader: Any = self.dm.val_loader
        self.test_loader: Any = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Set `self.model`, and register what is to be trained."""
        raise NotImplementedError

    def trainer_state(self) -> dict[str, Any]:
        scaler = getattr(self, "scaler", None)
        return {
            "best_result": self.best_result,
            "timing": dict(self.timing),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "batch": self.batches_done,
            "num_batches": self.num_batches,
            "random": random_state(),
            "loader_seeds": [(loader.dataset.seed, order_of(loader).seed) for loader in self._seeded_loaders()],
        }

    def load_trainer_state(self, state: Mapping[str, Any]) -> None:
        best = [osp.join(self.output_dir, name, "model-best.pth.tar") for name in self.get_model_names()]
        if all(map(osp.isfile, best)):
            self.best_result = state.get("best_result", self.best_result)
        self.timing.update(state.get("timing", {}))
        scaler = getattr(self, "scaler", None)
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        self.start_batch, self.num_batches = state.get("batch", 0), state.get("num_batches", 0)
        if type(self.start_batch) is not int or not 0 <= self.start_batch <= self.num_batches:
            raise ValueError(f"{self.start_batch} batches of {self.num_batches} are done")
        if not all(isinstance(seconds, (int, float)) for seconds in self.timing.values()):
            raise ValueError("its times are no numbers")
        if self.cfg.SEED < 0:  # else they follow from the seed
            for loader, seeds in zip(self._seeded_loaders(), state.get("loader_seeds", ()), strict=False):
                loader.dataset.seed, order_of(loader).seed = seeds
        if self.cfg.SEED < 0 or self.start_batch:
            self._random = state.get("random", {})

    def _seeded_loaders(self) -> list[Any]:
        x = self.train_loader_x
        return [x] if hasattr(getattr(x, "dataset", None), "seed") and hasattr(order_of(x), "seed") else []

    @property
    def test_selected(self) -> bool:
        """Whether training chooses by the test images, as some published code does: the result is flagged."""
        return False

    def check_training(self) -> None:
        """UserError: the best epoch is asked for, and there are no images to choose it by but the test's; or one of
        TRAIN.LOGGERS is not installed.
        """
        super().check_training()
        check_trackers(self.cfg)
        if self.cfg.TEST.NO_TEST or self.cfg.TEST.FINAL_MODEL != "best_val":
            return
        remedy = "choose TEST.FINAL_MODEL last_step"
        if self.val_loader is None:
            raise UserError(f"TEST.FINAL_MODEL is best_val, but there are no validation images; {remedy}")
        dataset = self.dm.dataset
        tested = {item.impath for item in dataset.test}
        if both := sum(item.impath in tested for item in dataset.val):
            raise UserError(f"TEST.FINAL_MODEL is best_val, but {both} validation images are test images; {remedy}")

    def seal_test(self, sealed: bool) -> None:
        """While it trains, a trainer cannot see the test images, unless it says that its result is `test_selected`."""
        if hasattr(self.test_loader, "sealed"):
            name = type(self).__name__
            why = f"{name} asks for the test images before its training is over; a choice by them is no result"
            self.test_loader.sealed = why if sealed and not self.test_selected else ""

    def train(self) -> None:  # type: ignore[override]
        try:
            self.seal_test(True)
            super().train(self.start_epoch, self.max_epoch)
        except Interrupted:
            self.look()
            if self.batches_done and is_main() and osp.isdir(self.output_dir):
                self.save_within_epoch(self.output_dir)
            raise
        finally:
            self.seal_test(False)
            if hasattr(self.train_loader_x, "close"):
                self.train_loader_x.close()
            if self.bar is not None:
                self.bar.close()
            self.close_writer()

    def set_epoch(self, epoch: int) -> None:
        """The epoch's order and augmentation, and, with a seed, what the model itself draws (dropout)."""
        order = order_of(self.train_loader_x)
        if hasattr(order, "set_epoch"):
            order.set_epoch(epoch, skip=self.start_batch * self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
        if self.cfg.SEED >= 0:
            set_random_seed(derive_seed(self.cfg.SEED, epoch))
        if state := self._random:  # resumed, in an epoch's middle or without a seed
            self._random = {}
            set_random_state(state)

    def before_train(self) -> None:
        """Resume from OUTPUT_DIR if it holds checkpoints, else from cfg.RESUME; start TensorBoard.

        UserError: RESUME holds no checkpoints, or those of a longer training; or there is nothing to choose by.
        """
        self.check_training()
        own = not self.cfg.RESUME or bool(self.find_checkpoints(self.output_dir))
        self.start_epoch = self.resume_model_if_exist(self.output_dir if own else self.cfg.RESUME)
        if not own and self.start_epoch == self.start_batch == 0:
            wanted = ", ".join(osp.join(self.cfg.RESUME, name, "checkpoint") for name in self.get_model_names())
            raise UserError(f"nothing to resume from in {self.cfg.RESUME}: looked for {wanted}")
        if self.start_epoch > self.max_epoch:
            raise UserError(f"{self.start_epoch} epochs are finished there, but OPTIM.MAX_EPOCH is {self.max_epoch}")
        if is_main():
            writer_dir = osp.join(self.output_dir, "tensorboard")
            mkdir_if_missing(writer_dir)
            self.init_writer(writer_dir)
            self._writer = with_trackers(self._writer, self.cfg, dict(flatten(self.cfg)))
        self.time_start = time.time()

    def after_epoch(self) -> None:
        """Test, if the best is to be kept, and save. UserError: the output directory has vanished."""
        done, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                with uninterrupted():  # the best result is that of the model that is there
                    self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
                    self.best_result = result
        if is_main() and not osp.isdir(self.output_dir):
            raise UserError(
                f"the output directory '{self.output_dir}' has vanished in epoch {done}; nothing was saved of it"
            )
        kept = done == self.max_epoch or (freq > 0 and done % freq == 0)
        with uninterrupted():
            self.start_batch = self.batches_done = 0
            self.save_model(self.epoch, self.output_dir, rolling=not kept)
        if self._writer is not None:
            self._writer.flush()

    def after_train(self) -> None:
        print("Finish training")
        self.seal_test(False)
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                gathered(None)  # the first process may have to write it yet
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        if is_main():
            self.remove_rolling(self.output_dir)
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on `split` (cfg.TEST.SPLIT; without validation data, the test set); the first result.

        UserError: it would be the test set, while it trains.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" else None
        if loader is None:
            split, loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")
        self.tested = []
        self.before_test(split)
        start, images, batches = time.perf_counter(), 0, with_features(self, loader)
        for batch in with_progress(batches, unit="batch", desc=split, leave=False):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
            self.tested += batch.get("impath", [])
            images += len(label)
        self.evaluator.gather()
        self.tested = [path for part in gathered(self.tested) for path in part]
        images = sum(gathered(images))
        kept = any(gathered(getattr(batches, "read", False)))
        for name in ("test_images_per_second", "kept_test_images_per_second"):
            self.timing.pop(name, None)
        self.timing[f"{'kept_' * kept}test_images_per_second"] = images / (time.perf_counter() - start)
        self.after_test(split)
        results = self.results[split] = dict(self.evaluator.evaluate())
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def kept_features(self, loader: Any, view: int | None = None) -> Iterable[dict[str, Any]]:
        """The batches of a sequential loader, with ``features`` from the store in place of ``img`` where they are kept.

        Args:
            view: the augmentation of which epoch, where the loader's transform is a training's.
        """
        return with_features(self, loader, view)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)

    def look(self) -> list[dict[str, float]]:
        """The summaries of the steps since the last look; waits once for the device. UserError: one is not finite."""
        steps, self.unseen = self.unseen, []
        values: list[Any] = [value for _, _, summary in steps for value in summary.values()]
        if any(isinstance(value, torch.Tensor) for value in values):
            values = torch.stack([torch.as_tensor(x, device=self.device).double().squeeze() for x in values]).tolist()
        numbers, found = iter(values), []
        for self.batch_idx, files, summary in steps:
            found.append({name: next(numbers) for name in summary})
            if summed([not all(map(math.isfinite, found[-1].values()))], self.device)[0]:
                raise self.not_finite("the loss", self.all_files({"impath": files}))
        return found

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]


class TrainerX(SimpleTrainer):
    """A trainer on labelled data only."""

    def run_epoch(self) -> None:
        """From batch `start_batch` on. UserError: a loss, or what was learned, is not finite."""
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        n = len(self.train_loader_x)
        if self.start_batch and self.num_batches != n:
            raise UserError(f"interrupted in an epoch of {self.num_batches} batches; here one has {n}")
        self.num_batches, self.batch_idx = n, self.start_batch - 1
        self.unseen, waited = [], 0.0
        seconds_before = self.timing.get("train_seconds", 0.0)
        epoch_start = end = time.perf_counter()
        if self.bar is None:
            total, done = self.max_epoch * n, self.epoch * n + self.start_batch
            self.bar = with_progress(total=total, initial=done, unit="batch", leave=False)
        self.bar.set_description(f"epoch {self.epoch + 1}/{self.max_epoch}")
        for batch_idx, batch in enumerate(self.batches(self.train_loader_x), start=self.start_batch):
            raise_again()
            self.batch_idx = batch_idx
            loaded = time.perf_counter()
            with uninterrupted():
                self._step(batch)
                seen = self.look() if self._due() else []
                for summary in seen:
                    losses.update(self.end_step(summary))
                now = time.perf_counter()
                self.timing["train_seconds"] = seconds_before + now - epoch_start
                self.batches_done = batch_idx + 1
            data_time.update(loaded - end)
            batch_time.update(now - end)
            waited += now - loaded
            if seen:
                self.step_times += [waited / len(seen)] * len(seen)
                waited = 0.0
                print_freq = self.cfg.TRAIN.PRINT_FREQ
                if (self.batch_idx + 1) % print_freq == 0 or self.num_batches < print_freq:
                    self._print_progress(losses, batch_time, data_time)
                self.bar.set_postfix({name: meter.avg for name, meter in losses.meters.items()}, refresh=False)
                n_iter = self.epoch * self.num_batches + self.batch_idx
                for name, meter in losses.meters.items():
                    self.write_scalar(f"train/{name}", meter.avg, n_iter)
                self.write_scalar("train/lr", self.get_current_lr(), n_iter)
            self.bar.update()
            end = time.perf_counter()
        if self.step_times:  # none, if the epoch was interrupted at its very end
            self.timing["step_seconds"] = statistics.median(self.step_times)
        if self.bar.disable and is_main():
            self._print_epoch(losses, batch_time)
        models = [self._models[name] for name in self.get_model_names()]
        if not all(p.isfinite().all() for model in models for p in model.parameters() if p.requires_grad):
            raise self.not_finite("what was learned", [])

    def _step(self, batch: dict[str, Any]) -> None:
        try:
            summary = self.forward_backward(batch) or {}
        except FloatingPointError:
            summary = {"loss": math.nan}
        kept = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in summary.items()}
        self.unseen.append((self.batch_idx, list(batch.get("impath", [])), kept))

    def _due(self) -> bool:
        """Whether to look at the steps: at once, unless their summaries are tensors, which a look would wait for."""
        done = self.batch_idx + 1
        waits = any(isinstance(value, torch.Tensor) for _, _, summary in self.unseen for value in summary.values())
        return not waits or done == self.num_batches or done % self.cfg.TRAIN.PRINT_FREQ == 0

    def _print_progress(self, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter) -> None:
        print_to_file(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] "
            f"batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
            f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} "
            f"lr {self.get_current_lr():.4e} "
            f"eta {self._time_left(batch_time)}"
        )

    def _print_epoch(self, losses: MetricMeter, batch_time: AverageMeter) -> None:
        """A line on the console, which has no bar: the means over the epoch."""
        means = " ".join(f"{name} {meter.avg:.4f}" for name, meter in losses.meters.items())
        print_to_console(f"epoch [{self.epoch + 1}/{self.max_epoch}] {means} eta {self._time_left(batch_time)}")

    def _time_left(self, batch_time: AverageMeter) -> datetime.timedelta:
        epochs_left = self.max_epoch - self.epoch - 1
        batches_left = self.num_batches - self.batch_idx - 1 + epochs_left * self.num_batches
        return datetime.timedelta(seconds=int(batch_time.avg * batches_left))

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))
