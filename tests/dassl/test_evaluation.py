"""The evaluator's numbers against scikit-learn's, and the accuracy of a training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from dassl.config import get_cfg_default
from dassl.evaluation import Classification, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.utils import UserError


@pytest.mark.parametrize("n_cls", [2, 7])
def test_classification_equals_sklearn(n_cls: int, capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = build_evaluator(get_cfg_default(), lab2cname={i: f"class{i}" for i in range(n_cls)})
    assert isinstance(evaluator, Classification)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50, n_cls, generator=generator)
    labels = torch.randint(n_cls - 1, (50,), generator=generator)  # one class predicted but never true
    for batch in torch.arange(50).split(16):
        evaluator.process(logits[batch], labels[batch])
    results = evaluator.evaluate()

    true, pred = labels.tolist(), logits.argmax(1).tolist()
    assert (evaluator.y_true, evaluator.y_pred) == (true, pred)
    accuracy = 100 * np.mean(np.array(true) == pred)
    f1 = 100 * f1_score(true, pred, average="macro", labels=np.unique(true))
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert list(results.values()) == pytest.approx([accuracy, 100 - accuracy, f1])
    assert all(type(value) is float for value in results.values())
    assert f"* accuracy: {accuracy:.1f}%" in capsys.readouterr().out

    evaluator.reset()
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluator.evaluate()


def test_unknown_evaluator() -> None:
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(UserError, match="did you mean 'Classification'"):
        build_evaluator(cfg)


def test_compute_accuracy() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    top1, top2 = compute_accuracy(logits, torch.tensor([0, 0, 1, 2]), topk=(1, 2))
    assert (top1.shape, top1.item(), top2.item()) == ((1,), 25.0, 75.0)
    assert compute_accuracy((logits, logits[:, :1]), torch.tensor([0, 1, 2, 0]))[0].item() == 100.0
