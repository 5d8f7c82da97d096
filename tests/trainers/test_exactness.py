"""PLOT, CoOp and CoCoOp against the plain oracle: logits, gradients and trained contexts.

The oracle (`tests.oracle`) runs all 77 tokens of every (prompt, class) in float64. Errors are relative to the
largest absolute value of the reference.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trainers.feature_trainer
import trainers.plot
import trainers.plotcocoop
import trainers.sinkhorn
import trainers.zsclip
from benchmarks import plain
from tests.oracle import KINDS, Oracle, embed_text, make_cfg, tiny_clip
from tests.trainers.custom_clip import (
    LABEL,
    MODULES,
    NAMES,
    POSITIONS,
    TEXTS,
    build,
    error,
    get_clip,
    get_oracle,
    gradients,
)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def run_oracle(trainer: str, oracle: Oracle, parameters: dict[str, Tensor], **options: Any) -> Tensor:
    """The reference logits of the named parameters of a prompt learner."""
    if trainer == "PLOT":
        return oracle.plot_logits(parameters["ctx"], **options)
    if trainer == "PLOTPP":
        return oracle.plotpp_logits(parameters["ctx"], parameters["ctx_vision"], **options)
    if trainer == "COOP":
        return oracle.coop_logits(parameters["ctx"], **options)
    w1, b1, w2, b2 = (parameters[f"meta_net.linear{i}.{part}"] for i in (1, 2) for part in ("weight", "bias"))
    conditioned = oracle.cocoop_logits if trainer == "COCOOP" else oracle.plotcocoop_logits
    return conditioned(parameters["ctx"], lambda x: F.linear(F.relu(F.linear(x, w1, b1)), w2, b2), **options)


def check(
    trainer: str, kind: str, batch: int = 3, size: int = 64, oracle_options: dict | None = None, **cfg: Any
) -> None:
    """Logits and gradients, in float64 and float32, against one run of the oracle."""
    oracle = get_oracle(kind, batch, size)
    model = build(trainer, kind, torch.float64, size, **cfg)
    start = model.prompt_learner.state_dict()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.prompt_learner.named_parameters()}
    reference = run_oracle(trainer, oracle, parameters, **oracle_options or {})
    F.cross_entropy(reference, LABEL[:batch]).backward()
    for dtype, tolerance in TOLERANCE.items():
        if dtype == torch.float32:
            model = build(trainer, kind, dtype, size, **cfg)
            model.prompt_learner.load_state_dict(start)
        logits = model(oracle.image.to(dtype))
        assert logits.shape == (batch, len(NAMES)) and logits.dtype == dtype
        assert error(logits, reference) < tolerance
        F.cross_entropy(logits, LABEL[:batch]).backward()
        for name, gradient in gradients(model).items():
            assert error(gradient, parameters[name].grad) < tolerance, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_agrees_with_clip(kind: str) -> None:
    oracle = get_oracle(kind)
    assert error(oracle.pooled, oracle.clip.encode_image(oracle.image)) < 1e-12
    assert oracle.local.shape == (3, {"RN": 4, "ViT": 16}[kind], 64)
    ctx = embed_text(oracle.clip, "a photo of a")
    tokens = clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    text = plain.text_features(oracle.clip, oracle.words, ctx[None])[0]
    assert error(text, oracle.clip.encode_text(tokens)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_random_clips_are_not_degenerate(kind: str) -> None:
    oracle = get_oracle(kind)
    for features in (oracle.pooled, oracle.local.flatten(0, 1)):
        unit = F.normalize(features, dim=-1)
        assert (unit @ unit.t()).min() < 0.9


@pytest.mark.medium
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init, n", [*itertools.product(["", "one"], [1, 2, 4]), ("N", 2), ("N", 4)])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_plot(position: str, csc: bool, init: str, n: int, kind: str) -> None:
    text = {"": "", "one": TEXTS[0], "N": "|".join(TEXTS[:n])}[init]
    cfg = {"N": n, "CSC": csc, "CTX_INIT": text, "CLASS_TOKEN_POSITION": position}
    check("PLOT", kind, oracle_options={"position": position}, **cfg)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["", TEXTS[0]])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_coop(position: str, csc: bool, init: str, kind: str) -> None:
    cfg = {"CSC": csc, "CTX_INIT": init, "CLASS_TOKEN_POSITION": position}
    check("COOP", kind, oracle_options={"position": position}, **cfg)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["", TEXTS[0]])
@pytest.mark.parametrize("batch", [1, 3])
def test_cocoop(batch: int, init: str, kind: str) -> None:
    check("COCOOP", kind, batch, CTX_INIT=init)


@pytest.mark.medium
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init, n", [("", 1), ("", 3), (TEXTS[0], 4), ("|".join(TEXTS), 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_plot_on_cocoop(batch: int, n: int, init: str, kind: str) -> None:
    check("PLOTCOCOOP", kind, batch, CTX_INIT=init, N=n)


@pytest.mark.parametrize("eps, max_iter, thresh", [(0.05, 100, 0.01), (0.1, 3, 1e-9)])
def test_plot_on_cocoop_has_plots_sinkhorn(eps: float, max_iter: int, thresh: float) -> None:
    options = {"eps": eps, "max_iter": max_iter, "thresh": thresh}
    check("PLOTCOCOOP", "ViT", oracle_options=options, N=2, EPS=eps, MAX_ITER=max_iter, THRESH=thresh)


def test_plot_on_cocoop_with_one_context_and_patch_is_cocoop_on_that_patch() -> None:
    """The plan of one prompt is uniform: the mean of CoCoOp's logits over the local features."""
    model, cocoop = build("PLOTCOCOOP", "RN", N=1), build("COCOOP", "RN")
    state = model.prompt_learner.state_dict()
    cocoop.prompt_learner.load_state_dict({**state, "ctx": state["ctx"][0]})
    pooled, local = (f for f in model.encode(get_oracle("RN").image).values())
    prefix, suffix = cocoop.prompt_learner(F.normalize(pooled, dim=-1))
    text = F.normalize(cocoop.text_encoder(prefix, suffix, cocoop.prompt_learner.prompts.layout), dim=-1)
    mean = torch.stack([F.normalize(f, dim=-1) @ text[b].t() for b, f in enumerate(local)]).mean(dim=1)
    assert error(model.logits(pooled, local), model.logit_scale.exp() * mean) < 1e-9


def test_chunks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("PLOTCOCOOP", "ViT", N=2).eval()
    features = {name: x.detach() for name, x in model.encode(get_oracle("ViT").image).items()}
    whole = model.logits(**features)
    monkeypatch.setattr(trainers.plotcocoop, "MAX_SIMILARITIES", 1)
    assert error(model.logits(**features), whole) < 1e-12


@pytest.mark.parametrize(
    "match, global_logits",
    [*itertools.product(["ot", "uniform", "max", "global"], [False, True]), ("mean", False)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_match_and_global_logits(kind: str, match: str, global_logits: bool) -> None:
    options = {"match": match, "global_logits": global_logits}
    check("PLOT", kind, oracle_options=options, N=2, MATCH=match, GLOBAL_LOGITS=global_logits)


@pytest.mark.parametrize("kind", ["RN GELU", "ViT GELU"])
@pytest.mark.parametrize("trainer", ["PLOT", "COOP", "COCOOP"])
def test_weights_trained_with_gelu(trainer: str, kind: str) -> None:
    check(trainer, kind, **({"N": 2} if trainer == "PLOT" else {}))
    quick, gelu = (get_oracle(k) for k in (kind.split()[0], kind))
    assert kind.startswith("RN") or error(gelu.pooled, quick.pooled) > 2 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("row", trainers.plot.PLOT.ablation)
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_the_ablation(kind: str, csc: bool, row: str) -> None:
    """Loss and gradient: the cross-entropy of a row's logits - VARIANCE * mean_k mean_n |g_nk - mean_n g_nk|^2."""
    settings = {"N": 4, "CSC": csc, **trainers.plot.PLOT.ablation[row]}
    model, oracle = build("PLOT", kind, **settings), get_oracle(kind)
    ctx = model.prompt_learner.ctx.detach().clone().requires_grad_()
    text = F.normalize(plain.text_features(oracle.clip, oracle.words, ctx), dim=-1)
    spread = sum((text[n] - text.mean(dim=0)).norm(dim=-1) ** 2 for n in range(4)).mean() / 4
    match, weight = settings.get("MATCH", "ot"), settings.get("VARIANCE", 0.0)
    reference = F.cross_entropy(oracle.plot_logits(ctx, match=match), LABEL) - weight * spread
    reference.backward()
    trainer = trainers.plot.PLOT.__new__(trainers.plot.PLOT)
    trainer.model, trainer.cfg = model, SimpleNamespace(TRAINER={"PLOT": model.options})
    loss = trainer.loss(model(oracle.image), LABEL)
    assert error(loss, reference) < 1e-9
    loss.backward()
    assert error(model.prompt_learner.ctx.grad, ctx.grad) < 1e-9
    assert (model.variance is not None) == (weight > 0)


def test_the_pooled_feature_against_each_prompt_differs_from_the_mean_of_prompts() -> None:
    """G averages logits of unit text features, ``mean`` the text features: equal with one prompt alone."""
    pooled = get_oracle("RN").pooled
    for n, equal in ((1, True), (4, False)):
        one, other = (build("PLOT", "RN", N=n, MATCH=match).logits(pooled) for match in ("global", "mean"))
        assert torch.allclose(one, other, atol=1e-9) == equal


@pytest.mark.parametrize("eps, max_iter, thresh", [(0.05, 100, 0.01), (0.1, 3, 1e-9), (0.02, 1000, 1e-7)])
def test_sinkhorn_settings(eps: float, max_iter: int, thresh: float) -> None:
    options = {"eps": eps, "max_iter": max_iter, "thresh": thresh}
    check("PLOT", "ViT", oracle_options=options, N=4, EPS=eps, MAX_ITER=max_iter, THRESH=thresh)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "eps, max_iter, thresh", [(1.0, 100, 0.01), (0.1, 100, 0.01), (2.0, 3, 1e-9), (0.3, 1000, 1e-7)]
)
def test_a_standardized_cost(kind: str, eps: float, max_iter: int, thresh: float) -> None:
    options = {"eps": eps, "max_iter": max_iter, "thresh": thresh, "cost": "standardized"}
    check("PLOT", kind, oracle_options=options, COST="standardized", EPS=eps, MAX_ITER=max_iter, THRESH=thresh)


def test_a_standardized_cost_knows_neither_unit_nor_place_and_stays_finite() -> None:
    """The plan is that of the raw cost at EPS times the deviation; of equal costs it is uniform, in float32 too."""
    similarity = get_oracle("RN").local.new_tensor(range(24)).sin().view(1, 2, 4, 3)
    options, rows = make_cfg("PLOT", COST="standardized", EPS=0.5, MAX_ITER=10000, THRESH=1e-12).TRAINER.PLOT, []
    for scaled in (similarity, 0.01 * similarity + 0.5):
        meter = _Plans()
        trainers.plot.transported(scaled, options, meter)
        rows.append(meter.plan)
    assert error(rows[1], rows[0]) < 1e-9
    for k in range(2):
        cost = 1 - similarity[0, k]
        plain_plan = trainers.sinkhorn.sinkhorn(cost, 0.5 * float(cost.std(correction=0)), 10000, 1e-12)
        assert error(rows[0][0, k], plain_plan) < 1e-9
    for dtype, (M, N) in itertools.product(TOLERANCE, [(1, 1), (1, 3), (4, 1), (4, 3)]):
        score = trainers.plot.transported(torch.full((1, 1, M, N), 0.3, dtype=dtype), options)
        assert error(score, torch.full((1, 1), 0.3)) < 1e-6


class _Plans:
    plan: Tensor

    def see_plan(self, plan: Tensor, *_: Tensor) -> None:
        self.plan = plan


def test_a_standardized_cost_in_chunks_of_images_and_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("PLOT", "ViT", COST="standardized", EPS=1.0)
    features = {name: x.detach() for name, x in model.encode(get_oracle("ViT").image).items()}
    whole = model.logits(**features)
    monkeypatch.setattr(trainers.plot, "MAX_SIMILARITIES", 1)
    assert error(model.logits(**features), whole.detach()) < 1e-12
    model.prompt_learner.prompts.split(range(2, 5))  # as a process of several does, under gradients
    assert error(model.logits(**features), whole.detach()[:, 2:5]) < 1e-9


def test_a_larger_resnet_grid() -> None:
    assert get_oracle("RN", 2, 128).local.shape[1] == 16
    check("PLOT", "RN", 2, 128, N=2)


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("trainer", ["PLOT", "COOP", "COCOOP"])
def test_ctx_init_starts_at_the_words(trainer: str, csc: bool) -> None:
    clip_model = get_clip("RN", torch.float64)
    cfg: dict[str, Any] = {} if trainer == "COCOOP" else {"CSC": csc}
    if trainer == "COCOOP" and csc:
        cfg = {"N_CTX": 3}  # is then without effect
    custom_clip = MODULES[trainer].CustomCLIP

    def start(text: str) -> Tensor:
        model = custom_clip(make_cfg(trainer, CTX_INIT=text, **cfg), NAMES, clip_model)
        return model.prompt_learner.ctx.detach()

    words = [embed_text(clip_model, text) for text in TEXTS]
    classes = (len(NAMES),) if cfg.get("CSC") else ()
    if trainer != "PLOT":
        assert torch.equal(start(TEXTS[0]), words[0].expand(*classes, *words[0].shape))
        return
    ctx = start("|".join(TEXTS))
    expected = torch.stack(words)
    assert torch.equal(ctx, expected.unsqueeze(1).expand(-1, *classes, -1, -1) if classes else expected)
    ctx = start(TEXTS[0])
    assert ctx.shape == (4, *classes, *words[0].shape)
    assert torch.equal(ctx[0], words[0].expand_as(ctx[0]))
    noise = ctx[1:] - words[0]
    assert 0.017 < noise.std() < 0.023
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(ctx, 2))


def test_contexts_without_words_are_noise() -> None:
    learner = trainers.plot.PromptLearner(make_cfg("PLOT", CSC=True), NAMES, get_clip("RN", torch.float64))
    ctx = learner.ctx
    assert ctx.shape == (4, len(NAMES), 16, 128) and ctx.requires_grad
    assert 0.019 < ctx.std() < 0.021


@pytest.mark.medium
@pytest.mark.parametrize(
    "trainer, lr, options",
    [
        ("PLOT", 0.002, {}),
        ("PLOT", 0.5, {"CLASS_TOKEN_POSITION": "middle"}),
        ("PLOT", 0.2, {"CSC": True}),
        ("COOP", 0.002, {"CLASS_TOKEN_POSITION": "front"}),
        ("COOP", 0.5, {}),
        ("COCOOP", 0.002, {}),
        ("COCOOP", 0.05, {}),
        ("PLOTCOCOOP", 0.05, {"N": 2}),
    ],
)
def test_twenty_steps_end_at_the_same_place(trainer: str, lr: float, options: dict[str, Any]) -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    model = build(trainer, "RN", **{**({"N": 2} if trainer == "PLOT" else {}), **options})
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.prompt_learner.named_parameters()}
    start = parameters["ctx"].detach().clone()
    position = {"position": options["CLASS_TOKEN_POSITION"]} if "CLASS_TOKEN_POSITION" in options else {}
    ours, theirs = sgd(model.prompt_learner.parameters()), sgd(parameters.values())
    for step in range(20):
        oracle = get_oracle("RN", 1 if trainer.endswith("COCOOP") else 2, seed=step % 5)
        label = LABEL[[step % 3, (step + 1) % 3]][: len(oracle.image)]
        for optimizer, logits in (
            (ours, model(oracle.image)),
            (theirs, run_oracle(trainer, oracle, parameters, **position)),
        ):
            optimizer.zero_grad()
            F.cross_entropy(logits, label).backward()
            optimizer.step()
    assert (parameters["ctx"] - start).abs().max() > 1e-4
    for name, p in model.prompt_learner.named_parameters():
        assert (p - parameters[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own prompts, with the template of the dataset; computed in float32 on a CPU."""
    clip_model = tiny_clip(kind, torch.float32)
    clip_model.weights_sha256 = ""
    monkeypatch.setattr(trainers.feature_trainer, "load_clip", lambda cfg: clip_model)
    trainer = trainers.zsclip.ZeroshotCLIP.__new__(trainers.zsclip.ZeroshotCLIP)
    trainer.cfg, trainer.device = make_cfg("PLOT"), torch.device("cpu")
    dataset = SimpleNamespace(classnames=NAMES, template="a centered photo of {}, seen from above.")
    trainer.dm = SimpleNamespace(dataset=dataset)
    trainer.build_model()
    oracle = get_oracle(kind)
    texts = [dataset.template.format(name.replace("_", " ")) for name in NAMES]
    logits = trainer.model_inference(oracle.image.float())
    assert error(logits, oracle.zeroshot_logits(texts)) < TOLERANCE[torch.float32]
