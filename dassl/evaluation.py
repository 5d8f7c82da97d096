"""Evaluators: what a test run reports. `Classification` gives accuracy, error rate and macro-F1 in percent.

The few sums are done here with torch; scikit-learn, whose numbers they equal, takes a second to import.
"""

import os.path as osp
from collections.abc import Mapping
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.extras.distributed import gathered, is_main
from dassl.utils import Registry, UserError, mkdir_if_missing, write_atomically

EVALUATOR_REGISTRY = Registry("evaluator")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> "EvaluatorBase":
    """The evaluator called cfg.TEST.EVALUATOR. UserError if there is none."""
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)


class EvaluatorBase:
    """Collects a test run's outputs batch by batch, then sums them up."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        raise NotImplementedError

    def gather(self) -> None:
        """Take in what the other processes of the run, if it has several, have processed."""

    def evaluate(self) -> dict[str, float]:
        """The results by name; the first is the one that `trainer.test()` returns."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """`y_true` and `y_pred` hold labels and predictions as lists, in the order of processing."""

    def __init__(self, cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        self.lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        self.y_true: list[int] = []
        self.y_pred: list[int] = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add logits `mo [batch, n_cls]` and labels `gt [batch]`."""
        self.y_true += gt.tolist()
        self.y_pred += mo.argmax(dim=1).tolist()

    def gather(self) -> None:
        self.y_true = [label for part in gathered(self.y_true) for label in part]
        self.y_pred = [label for part in gathered(self.y_pred) for label in part]

    def evaluate(self) -> dict[str, float]:
        if not self.y_true:
            raise UserError("nothing to evaluate: no image was processed")
        counts = self._counts()
        hits, n_true, n_pred = counts.diag(), counts.sum(1), counts.sum(0)
        seen = n_true > 0
        correct, total = int(hits.sum()), len(self.y_true)
        accuracy = 100.0 * correct / total
        results = {
            "accuracy": accuracy,
            "error_rate": 100.0 - accuracy,
            "macro_f1": 100.0 * (2 * hits / (n_true + n_pred))[seen].mean().item(),
        }
        print(
            f"=> result\n* total: {total:,}\n* correct: {correct:,}\n* accuracy: {accuracy:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class(hits, n_true)
        if self.cfg.TEST.COMPUTE_CMAT and is_main():
            self._save_cmat(counts)
        return results

    def _counts(self) -> torch.Tensor:
        """Images by true label and prediction, float64 [n, n], n one more than the largest seen."""
        n = max(max(self.y_true), max(self.y_pred)) + 1
        flat = torch.tensor(self.y_true) * n + torch.tensor(self.y_pred)
        return torch.bincount(flat, minlength=n * n).view(n, n).double()

    def _per_class(self, hits: torch.Tensor, n_true: torch.Tensor) -> float:
        print("=> per-class result")
        accuracies = []
        for label in n_true.nonzero().flatten().tolist():
            total, correct, name = int(n_true[label]), int(hits[label]), self.lab2cname.get(label, label)
            acc = 100.0 * correct / total
            accuracies.append(acc)
            print(f"* class: {label} ({name})\ttotal: {total:,}\tcorrect: {correct:,}\tacc: {acc:.1f}%")
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_cmat(self, counts: torch.Tensor) -> None:
        """Rows: true labels, summing to 1; a row and a column for every label that occurs in either."""
        occurs = (counts.sum(0) + counts.sum(1)) > 0
        counts = counts[occurs][:, occurs]
        path = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        mkdir_if_missing(self.cfg.OUTPUT_DIR)
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
        write_atomically(path, lambda file: torch.save(shares, file))
        print(f"Confusion matrix is saved to {path}")
