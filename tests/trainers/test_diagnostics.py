"""HeadMeter against its definitions. Measuring changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.oracle import random_images
from tests.trainers.custom_clip import NAMES, build
from trainers.diagnostics import HeadMeter, effective_rank
from trainers.sinkhorn import counted_sinkhorn, sinkhorn

NOTHING = {
    "plan_entropy",
    "plan_distance",
    "shift_spread",
    "predictions_changed",
    "iterations_mean",
    "iterations_max",
    "unconverged",
}


def test_against_the_definitions() -> None:
    """Every number from PLOT's plans and features, by a loop over images and classes."""
    model = build("PLOT", "RN", N=3).eval()
    model.meter = HeadMeter(100)
    image = random_images(5, 64, 1)
    with torch.no_grad():
        logits = model(image)
        text = F.normalize(model.text_features(), dim=-1)
        local = F.normalize(model.image_encoder(image)[1], dim=-1)
    found = model.meter.summary()
    scale, M, N = model.logit_scale.exp().item(), local.shape[1], 3
    entropies, distances, changed, spreads = [], [], [], []
    uniform = torch.zeros_like(logits)
    for b in range(5):
        for k in range(len(NAMES)):
            similarity = local[b] @ text[:, k].t()
            plan = sinkhorn(1 - similarity)
            entropies.append(-sum(t * math.log(t) for t in plan.flatten().tolist()) / math.log(M * N))
            distances.append(0.5 * sum(abs(t - 1 / (M * N)) for t in plan.flatten().tolist()))
            uniform[b, k] = scale * similarity.mean()
        shift = logits[b] - uniform[b]
        spreads.append((shift - shift.mean()).square().mean().sqrt().item())
        changed.append(100.0 * (logits[b].argmax() != uniform[b].argmax()).item())
    cosines = [F.cosine_similarity(text[i], text[j]).mean().item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["plan_entropy"] == pytest.approx(sum(entropies) / len(entropies))
    assert found["plan_distance"] == pytest.approx(sum(distances) / len(distances))
    assert found["shift_spread"] == pytest.approx(sum(spreads) / 5)
    assert found["predictions_changed"] == pytest.approx(sum(changed) / 5)
    assert found["text_cosine"] == pytest.approx(sum(cosines) / 3)


def test_measuring_changes_neither_logits_nor_gradients() -> None:
    outcomes = []
    for meter in (None, HeadMeter(100)):
        model = build("PLOT", "RN", N=2)
        model.meter = meter
        logits = model(random_images(3, 64, 1))
        logits.square().sum().backward()
        outcomes.append((logits.detach(), model.prompt_learner.ctx.grad))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_without_a_plan_its_numbers_are_absent() -> None:
    model = build("PLOT", "RN", N=2, MATCH="mean").eval()
    model.meter = HeadMeter(100)
    with torch.no_grad():
        model(random_images(2, 64, 1))
    found = model.meter.summary()
    assert {name for name, value in found.items() if value is None} == NOTHING
    assert isinstance(found["text_cosine"], float)


@pytest.mark.parametrize("eps", [0.1, 0.02])
def test_iterations_are_each_problems_own(eps: float) -> None:
    """A plain loop over the problems counts the same, in the logarithmic domain too."""
    torch.manual_seed(0)
    cost = eps * torch.tensor([1, 2, 4, 6, 8]).view(5, 1, 1) * torch.rand(5, 7, 3, dtype=torch.float64)
    iterations = counted_sinkhorn(cost, eps, 1000, 1e-4)[1]
    expected = []
    for problem in cost:
        kernel, r, c, n = (-problem / eps).exp(), torch.ones(7).double(), torch.ones(3).double(), 0
        change = 1.0
        while change >= 1e-4:
            before, r = r, (1 / 7) / (kernel @ c)
            c, n = (1 / 3) / (kernel.t() @ r), n + 1
            change = (r - before).abs().mean().item()
        expected.append(n)
    assert iterations.tolist() == expected and len(set(expected)) > 1
    assert counted_sinkhorn(cost, eps, 2, 1e-9)[1].tolist() == [2] * 5


def test_effective_rank() -> None:
    """Orthogonal contexts of one length: N. Parallel ones: 1. Lengths 3 and 1: exp of the entropy of 3/4 and 1/4."""
    eye = torch.eye(4)[:, None]  # [N, 1, d]
    assert effective_rank(eye) == pytest.approx(4)
    assert effective_rank(torch.ones(3, 2, 5) * torch.tensor([1.0, 2.0, -3.0])[:, None, None]) == pytest.approx(1)
    two = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(two) == pytest.approx(expected)
    per_class = torch.stack([eye.expand(4, 1, 4), torch.ones(4, 1, 4)], dim=1)  # [N, n_cls, n_ctx, d]
    assert effective_rank(per_class) == pytest.approx((4 + 1) / 2)
