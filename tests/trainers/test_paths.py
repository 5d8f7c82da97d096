"""The same logits by every path: evaluation with cached text features, computing in chunks, and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import trainers.clip.encoders
import trainers.plot
from tests.oracle import random_images
from tests.trainers.custom_clip import LABEL, build, error, get_oracle, gradients


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("trainer", ["PLOT", "COOP", "COCOOP"])
def test_evaluation_gives_the_logits_of_training(trainer: str) -> None:
    image = random_images(3)
    model, other = build(trainer, "ViT"), build(trainer, "ViT")
    counts = []
    for change in ("none", "none", "in place", "loaded", "step"):
        if change == "in place":
            with torch.no_grad():
                model.prompt_learner.ctx.add_(0.01)
        elif change == "loaded":
            state = {k: v * 1.5 for k, v in model.prompt_learner.state_dict().items()}
            model.prompt_learner.load_state_dict(state)
        elif change == "step":
            optimizer = torch.optim.SGD(model.prompt_learner.parameters(), lr=0.5)
            F.cross_entropy(model.train()(image), LABEL).backward()
            optimizer.step()
        other.prompt_learner.load_state_dict(model.prompt_learner.state_dict())
        with torch.no_grad(), CountOps() as ops:
            logits = model.eval()(image)
        counts.append(ops.count)
        assert error(logits, other.train()(image).detach()) < 1e-12, change
    if trainer != "COCOOP":  # CoCoOp's prompts depend on the image
        assert counts[1] < counts[0] < 1.5 * counts[2], "text features are computed once for each context"


@pytest.mark.parametrize(("tokens", "at_once"), [(1, 3), (20, 3), (20, 1000)])
@pytest.mark.parametrize(
    "trainer, options",
    [
        ("PLOT", {}),
        ("PLOT", {"CSC": True}),
        ("PLOT", {"CLASS_TOKEN_POSITION": "middle"}),
        ("COOP", {}),
        ("COCOOP", {}),
    ],
)
def test_computing_in_chunks_changes_nothing(
    trainer: str, options: dict, tokens: int, at_once: int, monkeypatch: Any
) -> None:
    """With 20 tokens at once the MLPs compute their hidden layers again; 1,000 times as many suffice."""
    results = []
    for limit in (None, tokens):
        if limit:
            monkeypatch.setattr(trainers.clip.encoders, "MAX_TOKENS", limit)
            monkeypatch.setattr(trainers.clip.encoders, "MAX_AT_ONCE", at_once)
            monkeypatch.setattr(trainers.plot, "MAX_SIMILARITIES", limit)
        model = build(trainer, "RN", **options)
        logits = model(get_oracle("RN").image)
        F.cross_entropy(logits, LABEL).backward()
        with torch.no_grad():
            evaluated = model.eval()(get_oracle("RN").image)
        results.append({"logits": logits.detach(), "evaluated": evaluated, **gradients(model)})
    for name, reference in results[0].items():
        assert error(results[1][name], reference) < 1e-12, name


@pytest.mark.parametrize("images_at_once", [1, 2])
def test_the_head_holds_no_more_similarities_than_its_bound(images_at_once: int, monkeypatch: Any) -> None:
    """Six classes, M = 4 and N = 4 make 96 similarities an image. A chunk holds whole images."""
    sizes = []
    counted = trainers.plot.counted_sinkhorn

    def spy(cost: torch.Tensor, *args: Any) -> Any:
        sizes.append(cost.numel())
        return counted(cost, *args)

    monkeypatch.setattr(trainers.plot, "counted_sinkhorn", spy)
    monkeypatch.setattr(trainers.plot, "MAX_SIMILARITIES", 96 * images_at_once)
    build("PLOT", "RN")(get_oracle("RN").image)
    assert sizes == ([96] * 3 if images_at_once == 1 else [192, 96])


@pytest.mark.parametrize("kind", ["RN", "ViT"])
def test_weights_cast_once_give_the_bits_of_autocast(kind: str, monkeypatch: Any) -> None:
    """Logits, features and gradients. Each case has a model of its own, since the model keeps the cast copy."""
    image, results = random_images(3, dtype=torch.float32), []
    for once in (False, True):
        with monkeypatch.context() as patch:
            if not once:
                patch.setattr(trainers.clip.encoders.Autocast, "__call__", lambda self, device: self.tower)
            model = build("PLOT", kind, torch.float32)
            with torch.autocast("cpu", torch.bfloat16):
                logits, features = model(image), model.image_encoder(image)
            F.cross_entropy(logits, LABEL).backward()
        results.append([logits.detach(), *features, model.prompt_learner.ctx.grad])
        assert len(model.image_encoder.cast.copies) == len(model.text_encoder.cast.copies) == int(once)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    exact = model.image_encoder(image)  # outside autocast the weights are the full ones
    for half, full in zip(features, exact, strict=True):
        assert half.dtype == torch.bfloat16 and full.dtype == torch.float32
        assert 0.98 < F.cosine_similarity(half.float(), full, dim=-1).min() < 1


def test_batch_norms_are_folded_in_a_copy() -> None:
    oracle = get_oracle("RN")
    before = {k: v.clone() for k, v in oracle.clip.visual.state_dict().items()}
    encoder = trainers.clip.encoders.ImageEncoder(oracle.clip.visual)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules())
    pooled, local = encoder(oracle.image)
    assert error(pooled, oracle.clip.encode_image(oracle.image)) < 1e-12
    assert error(local, oracle.local) < 1e-12
    after = oracle.clip.visual.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
