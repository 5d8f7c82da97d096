"""The heads on frozen features against the equations, written plainly, and against scikit-learn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trainers.feature_trainer
from benchmarks import plain
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from tests.oracle import KINDS, plot_adapter_scores, random_images, sinkhorn, tip_logits
from tests.trainers.custom_clip import LABEL, NAMES, error, get_clip, get_oracle
from trainers import extend_cfg
from trainers.feature_trainer import ENSEMBLE
from trainers.linear_probe import search
from trainers.tip_adapter import grid

N = 14  # cached images
TEMPLATE = "a centered photo of {}, seen from above."


def trainer_of(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float64, **options: Any
) -> Any:
    """A trainer with its head on the tiny CLIP, without data; options are keys of its node."""
    clip_model = get_clip(kind, dtype)
    clip_model.weights_sha256 = ""
    monkeypatch.setattr(type(clip_model), "float", lambda self: self)
    monkeypatch.setattr(trainers.feature_trainer, "load_clip", lambda cfg: clip_model)
    cfg, method = get_cfg_default(), TRAINER_REGISTRY.get(name)
    extend_cfg(cfg)
    cfg.INPUT.SIZE, cfg.TRAINER.NAME = (64, 64), name
    if method.node:
        cfg.TRAINER[method.node].update(options)
    trainer = method.__new__(method)
    trainer.__dict__ |= {"_models": {}, "_optims": {}, "_scheds": {}, "cfg": cfg, "device": torch.device("cpu")}
    trainer.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=NAMES, template=TEMPLATE))
    trainer.build_model()
    return trainer


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def texts(kind: str, templates: tuple[str, ...]) -> Tensor:
    """Features [T, n_cls, d] by CLIP's own text tower."""
    model = get_clip(kind, torch.float64)
    filled = [[t.format(name.replace("_", " ")) for name in NAMES] for t in templates]
    return torch.stack([model.encode_text(plain.clip.tokenize(row)) for row in filled])


def random_keys(*shape: int) -> Tensor:
    return unit(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))


LABELS = torch.arange(N) % len(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot_with_the_ensemble(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = get_oracle(kind)
    for choice, templates in {"both": (*ENSEMBLE, TEMPLATE), "ensemble": ENSEMBLE, "own": (TEMPLATE,)}.items():
        trainer = trainer_of("ZeroshotCLIP2", kind, monkeypatch, TEMPLATES=choice)
        vectors = unit(unit(texts(kind, templates)).mean(dim=0))
        reference = oracle.clip.logit_scale.exp() * unit(oracle.pooled) @ vectors.t()
        assert error(trainer.model_inference(oracle.image), reference) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot_with_the_plan(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, trainer = get_oracle(kind), trainer_of("ZeroshotPLOT", kind, monkeypatch)

    def solver(cost: Tensor) -> Tensor:
        return torch.stack([sinkhorn(problem) for problem in cost.flatten(0, 1)]).view_as(cost)

    text = texts(kind, (*ENSEMBLE, TEMPLATE))
    reference = plain.plot_logits(oracle.clip, oracle.pooled, oracle.local, text, solver=solver)
    assert error(trainer.model_inference(oracle.image), reference) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_tip_adapters_logits_and_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, trainer = get_oracle(kind), trainer_of("TipAdapterF", kind, monkeypatch)
    keys = random_keys(N, oracle.pooled.shape[1]).requires_grad_()
    trainer.head.put(keys=keys.detach(), labels=LABELS, alpha=torch.tensor(1.5), beta=torch.tensor(2.5))
    scale, text = oracle.clip.logit_scale.exp(), unit(texts(kind, (TEMPLATE,))[0])
    reference = tip_logits(scale, oracle.pooled, text, keys, LABELS, 1.5, 2.5)
    logits = trainer.logits(oracle.pooled)
    assert error(logits.detach(), reference.detach()) < 1e-9
    F.cross_entropy(reference, LABEL).backward()
    F.cross_entropy(logits, LABEL).backward()
    assert error(trainer.head.keys.grad, keys.grad) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_plot_adapters_logits_and_gradients(kind: str, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a test with PLOT's logits, half of them from the plan and half from the pooled feature; trained without."""
    oracle = get_oracle(kind)
    trainer = trainer_of("PLOTAdapter", kind, monkeypatch, PLOT_WEIGHT=weight)
    d = oracle.pooled.shape[1]
    keys, prompts = random_keys(2, N, d).requires_grad_(), 3 * random_keys(3, len(NAMES), d)
    constants = {"plot_text": prompts, "plot_sinkhorn": torch.tensor([0.1, 100, 0.01], dtype=torch.float64)}
    trainer.head.put(keys=keys.detach(), labels=LABELS, alpha=torch.tensor(1.5), beta=torch.tensor(2.5), **constants)
    scale, text = oracle.clip.logit_scale.exp(), unit(texts(kind, (TEMPLATE,))[0])
    trained = scale * unit(oracle.pooled) @ text.t()
    trained = trained + 1.5 * scale * plot_adapter_scores(oracle.local, keys, LABELS, len(NAMES), 2.5)
    similarity = torch.einsum("bmd,nkd->bkmn", unit(oracle.local), unit(prompts))
    plans = torch.stack([sinkhorn(1 - problem) for problem in similarity.flatten(0, 1)]).view_as(similarity)
    plot = scale * (plans * similarity).sum(dim=(2, 3)) / 2
    plot = plot + scale * unit(oracle.pooled) @ unit(prompts.mean(dim=0)).t() / 2
    features = {"pooled": oracle.pooled, "local": oracle.local}
    assert error(trainer.logits(**features).detach(), (trained + weight * plot).detach()) < 1e-9

    F.cross_entropy(trained, LABEL).backward()
    trainer.parse_batch_train = lambda batch: (features, LABEL)
    trainer.model_backward_and_update = lambda loss: loss.backward()
    summary = trainer.forward_backward({})
    assert summary["loss"] == pytest.approx(F.cross_entropy(trained, LABEL).item(), rel=1e-9)
    assert error(trainer.head.keys.grad, keys.grad) < 1e-9


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF", "PLOTAdapter"])
def test_the_grid_search(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all values the best, of equals the first, beta varying last; kept only where it is better than ``least``."""
    trainer = trainer_of(name, "RN", monkeypatch, ALPHA_STEPS=5, BETA_STEPS=4, ALPHA_MAX=20.0, BETA_MAX=9.0)
    oracle = get_oracle("RN")
    pooled, local = plain.image_features(oracle.clip, random_images(12, seed=5))
    labels = torch.randint(len(NAMES), (12,), generator=torch.Generator().manual_seed(1))
    d = pooled.shape[1]
    keys = random_keys(2, N, d) if name == "PLOTAdapter" else random_keys(N, d)
    more = {
        "plot_text": random_keys(3, len(NAMES), d),
        "plot_sinkhorn": torch.tensor([0.1, 100, 0.01], dtype=torch.float64),
    }
    trainer.head.put(keys=keys, labels=LABELS, **(more if name == "PLOTAdapter" else {}))
    features = {"pooled": pooled, "local": local} if name == "PLOTAdapter" else {"pooled": pooled}
    trainer.parts = lambda images: [
        ({key: x[part] for key, x in features.items()}, labels[part]) for part in (slice(0, 5), slice(5, 12))
    ]
    best, chosen = -1.0, (0.0, 0.0)
    for beta in [0.1 + i * 8.9 / 4 for i in range(4)]:
        for alpha in [0.1 + i * 19.9 / 5 for i in range(5)]:
            trainer.take(alpha, beta)
            found = (trainer.logits(**features).argmax(dim=1) == labels).double().mean().item()
            if found > best:
                best, chosen = found, (alpha, beta)
    trainer.take(7.0, 7.0)
    trainer.search(range(12), least=100 * best)
    assert (float(trainer.head.alpha), float(trainer.head.beta)) == (7.0, 7.0)
    trainer.search(range(12))
    assert (float(trainer.head.alpha), float(trainer.head.beta)) == pytest.approx(chosen)
    assert trainer.accuracy(range(12)) == pytest.approx(100 * best)
    assert grid(9.0, 4)[0] == 0.1 and len(grid(9.0, 4)) == 4 and max(grid(9.0, 4)) < 9


def test_the_search_for_c() -> None:
    """The published one, on accuracies that are known: a peak between two powers, a plateau, and the ends."""

    def published(accuracy: Any) -> float:
        powers = [1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6]
        values = [accuracy(c) for c in powers]
        c = powers[values.index(max(values))]
        left, right = 1e-1 * c, 1e1 * c
        for _ in range(8):
            middle = 10 ** (0.5 * (math.log10(left) + math.log10(right)))
            if accuracy(left) < accuracy(right):
                final, left = right, middle
            else:
                final, right = left, middle
        return final

    for peak in (30.0, 1e9, 1e-9, 0.02):
        accuracy = lambda c, peak=peak: -abs(math.log10(c / peak))  # noqa: E731
        assert search(accuracy, 8)[0] == pytest.approx(published(accuracy), rel=1e-9)
    assert search(lambda c: 0.5, 8)[0] == pytest.approx(1e5)
