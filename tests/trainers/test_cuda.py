"""On a real GPU: logits and gradients against the float64 oracle, CUDA graphs, whole runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clip.model import convert_weights
from torch import Tensor

import train
from tests.oracle import KINDS, make_cfg, tiny_clip
from tests.runs.test_train import SHORT, command, one_result
from tests.trainers.custom_clip import LABEL, MODULES, NAMES, build, error, get_oracle, gradients
from tests.trainers.fused_problems import problems
from tests.trainers.test_exactness import run_oracle
from trainers.clip.graphs import Replayed, replay

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("PLOT", {"N": 4}, {}),
    ("PLOT", {"N": 2, "CSC": True, "CLASS_TOKEN_POSITION": "middle"}, {"position": "middle"}),
    ("PLOT", {"N": 4, "EPS": 0.02, "MAX_ITER": 1000, "THRESH": 1e-7}, {"eps": 0.02, "max_iter": 1000, "thresh": 1e-7}),
    ("PLOT", {"N": 2, "MATCH": "max", "GLOBAL_LOGITS": True}, {"match": "max", "global_logits": True}),
    ("COOP", {}, {}),
    ("COCOOP", {}, {}),
]


@pytest.fixture(autouse=True)
def _float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def reference(trainer: str, kind: str, model: Any, options: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of the oracle, in float64 on the CPU."""
    parameters = {n: p.detach().cpu().double().requires_grad_() for n, p in model.prompt_learner.named_parameters()}
    logits = run_oracle(trainer, get_oracle(kind), parameters, **options)
    F.cross_entropy(logits, LABEL).backward()
    return logits.detach(), {name: p.grad for name, p in parameters.items()}


def step(model: Any, encode: Any, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model.logits(*encode(image))
    F.cross_entropy(logits.float(), LABEL.cuda()).backward()
    return logits.detach().clone(), {name: p.clone() for name, p in gradients(model).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("trainer", "options", "of_oracle"), CASES)
def test_float32(trainer: str, options: dict[str, Any], of_oracle: dict[str, Any], kind: str) -> None:
    """Without graphs, and at the third call, which is the second by graphs."""
    model = build(trainer, kind, torch.float32, **options).cuda()
    logits, grads = reference(trainer, kind, model, of_oracle)
    image = get_oracle(kind).image.float().cuda()
    found = [step(model, model.image_encoder, image)]
    encode = replay(model)
    for other in (image.flip(0), -image, image):
        again = step(model, encode, other)
    found.append(again)
    assert encode.graph is not None and model.text_encoder.forward.graph is not None
    for ours, our_grads in found:
        assert error(ours.cpu(), logits) < 1e-4
        for name, grad in grads.items():
            assert error(our_grads[name].cpu(), grad) < 1e-4, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("trainer", "options", "of_oracle"), CASES[:1] + CASES[-2:])
@pytest.mark.parametrize("prec", ["fp16", "amp", "bf16"])
def test_half_precision(trainer: str, options: dict[str, Any], of_oracle: dict[str, Any], kind: str, prec: str) -> None:
    """The error fits the type's 11 or 8 bits, with graphs as without."""
    clip_model = tiny_clip(kind, torch.float32, 0, 64)
    if prec == "fp16":
        convert_weights(clip_model)
    torch.manual_seed(0)
    model = MODULES[trainer].CustomCLIP(make_cfg(trainer, 64, N_CTX=5, **options), NAMES, clip_model).train().cuda()
    logits, grads = reference(trainer, kind, model, of_oracle)
    image = get_oracle(kind).image.float().cuda()
    dtype = torch.bfloat16 if prec == "bf16" else torch.float16

    def taken(encode: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cuda", dtype, enabled=prec != "fp16"):
            return step(model, encode, image)

    plain = taken(model.image_encoder)
    encode = replay(model)
    replayed = [taken(encode) for _ in range(3)][-1]
    bound = 0.15 if prec == "bf16" else 0.02
    for ours, our_grads in (plain, replayed):
        assert error(ours.cpu(), logits) < bound
        for name, grad in grads.items():
            assert error(our_grads[name].cpu(), grad) < 4 * bound, name
    assert error(replayed[0], plain[0]) < 1e-3


def test_the_fused_head_equals_float64() -> None:
    """Of 200 problems; tests/trainers/test_fused_head.py does the same by Triton's interpreter."""
    from trainers.clip.fused_head import fused_head

    for p in problems(200):
        local, text = p.local.cuda().requires_grad_(), p.text.cuda().requires_grad_()
        score, taken = fused_head(local, text, p.eps, p.max_iter, p.thresh)
        (p.weight.cuda() * score).sum().backward()
        for ours, theirs in zip((score, local.grad, text.grad), p.solution(), strict=True):
            assert ours is not None
            torch.testing.assert_close(ours.cpu().double(), theirs, rtol=0, atol=p.bound)
        assert not p.determined or torch.equal(taken.cpu(), p.iterations())


@pytest.mark.parametrize(("kind", "N"), [("RN", 4), ("ViT", 4), ("RN", 1), ("RN", 32)])
def test_a_model_with_the_fused_head(kind: str, N: int) -> None:
    """Logits and gradients of the whole model, its towers from graphs; no warning that the head was given up."""
    model: Any = build("PLOT", kind, torch.float32, N=N, FUSED_HEAD=True).cuda()
    logits, grads = reference("PLOT", kind, model, {})
    encode, image = replay(model), get_oracle(kind).image.float().cuda()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            ours, our_grads = step(model, encode, image)
    assert model.fused is not None
    assert error(ours.cpu(), logits) < 1e-4
    for name, grad in grads.items():
        assert error(our_grads[name].cpu(), grad) < 1e-4, name


def test_other_shapes_are_captured_anew() -> None:
    double = Replayed(lambda x, factor: factor * x * x)
    for n in (2, 2, 2, 3, 2, 2, 2):
        x = torch.arange(float(n), device="cuda", requires_grad=True)
        y = double(x, 3)
        assert y.tolist() == [3 * i * i for i in range(n)]
        y.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [6 * i for i in range(n)]
        with torch.no_grad():
            assert double(x, 3).tolist() == [3 * i * i for i in range(n)]


def test_what_cannot_be_captured_is_computed_plainly() -> None:
    asks = Replayed(lambda x: x * x if x.sum().item() > 0 else x)
    asks(torch.ones(2, device="cuda"))
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert asks(torch.ones(2, device="cuda")).tolist() == [1, 1]
    assert asks(torch.full((2,), 3.0, device="cuda")).tolist() == [9, 9]
    assert (torch.ones(2, device="cuda") + 1).tolist() == [2, 2]


@pytest.mark.parametrize("trainer", ["PLOT", "CoOp", "CoCoOp"])
def test_a_run_learns_the_same_with_graphs_and_without(trainer: str, run_args: list[str], tmp_path: Path) -> None:
    config = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1"}[trainer]
    learned = []
    for graphs in ("CUDA_GRAPHS True", "CUDA_GRAPHS False", "WHOLE_STEP_GRAPH True"):
        more = [f"TRAINER.{trainer.upper()}.PREC", "fp32", *f"TRAINER.{graphs}".split(), "OPTIM.LR", "1e-4"]
        more += ["DATALOADER.TRAIN_X.BATCH_SIZE", "2", "TRAINER.FUSED_HEAD", "True"]  # 5 steps an epoch
        argv = ["--output-dir", str(tmp_path / graphs), *command(run_args, trainer, config), *SHORT, *more]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "computed without")
            assert train.main(argv) == 0
        _, result = one_result(tmp_path / graphs, ".")
        assert result["device"].startswith("cuda") and result["peak_gpu_memory_bytes"] > 0
        file = tmp_path / graphs / "prompt_learner/model.pth.tar-2"
        learned.append(torch.load(file, weights_only=True)["state_dict"]["ctx"])
    assert all(error(other.cpu(), learned[0].cpu()) < 1e-4 for other in learned[1:])
