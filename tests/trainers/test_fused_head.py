"""PLOT's head as one Triton kernel: interpreted against float64, compiled for GPUs, and where it cannot run.

tests/trainers/test_cuda.py runs it on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runs.directory import REPOSITORY
from tests.trainers.custom_clip import build, get_oracle
from tests.trainers.fused_problems import problems
from trainers.diagnostics import HeadMeter

pytestmark = pytest.mark.medium
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def answers(count: int, folder: Path) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The kernel's, from a process that interprets it."""
    path = folder / "answers.pt"
    command = [sys.executable, "-m", "tests.trainers.fused_problems", str(count), str(path)]
    subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True, timeout=900)
    return torch.load(path, weights_only=True)


@needs_triton
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_interpreted_kernel_equals_float64(count: int, tmp_path: Path) -> None:
    """Scores and gradients of all problems, and the iterations of those whose stop float32 determines.

    Elsewhere r is so large that its rounding decides, in counted_sinkhorn as in the kernel.
    """
    determined = 0
    for p, (*found, taken) in zip(problems(count), answers(count, tmp_path), strict=True):
        for ours, theirs in zip(found, p.solution(), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=p.bound)
        if p.determined:
            determined += 1
            assert torch.equal(taken, p.iterations())
    assert 3 * determined >= 2 * count


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("M", "N"), [(49, 4), (257, 32)])
@pytest.mark.parametrize("log", [False, True])
def test_the_kernel_compiles_for_a_gpu(
    M: int, N: int, log: bool, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton needs none for that. A block of an A100 has 163 KB of shared memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget

    from trainers.clip.fused_head import block_sizes, head_kernel

    warps = (constants := block_sizes(M, N)).pop("num_warps")
    constants |= {"LOG": log, "KEEP": True}
    types = dict.fromkeys(("local", "text", "scores", "plans"), "*fp32") | {"counts": "*i32", "eps": "fp32"}
    types |= dict.fromkeys(("n_cls", "batch", "M", "N", "d", "max_iter"), "i32") | {"thresh": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(head_kernel, types, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert "cubin" in made.asm and made.metadata.shared <= 163 * 1024


def test_without_a_gpu_a_line_says_so_and_the_bits_stay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    image = get_oracle("RN").image.float()
    expected = build("PLOT", "RN", torch.float32, N=2)(image)
    assert "FUSED_HEAD" not in capsys.readouterr().out
    found = fused("PLOT")(image)
    assert "TRAINER.FUSED_HEAD needs a GPU: the head is computed without it" in capsys.readouterr().out
    assert torch.equal(found, expected)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("trainers.plot.find_spec", lambda name: None)
    assert fused("PLOT").fused is None and "FUSED_HEAD needs Triton" in capsys.readouterr().out
    for options in ({"MATCH": "max"}, {"COST": "standardized"}):
        assert fused("PLOT", **options).fused is None
        assert "FUSED_HEAD needs MATCH ot and COST raw" in capsys.readouterr().out


def fused(trainer: str, **options: Any) -> Any:
    """The model of a config with TRAINER.FUSED_HEAD True."""
    return build(trainer, "ViT" if trainer == "PLOTPP" else "RN", torch.float32, N=2, FUSED_HEAD=True, **options)


@pytest.mark.parametrize("trainer", ["PLOT", "PLOTPP"])
def test_the_head_is_asked_for_scores_alone(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where a meter is to see the plans, nor for another MATCH; after a failure it is asked no more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, image = fused(trainer), get_oracle("RN").image.float()
    expected, asked = model(image), []

    def head(local: Tensor, text: Tensor, *numbers: float) -> tuple[Tensor, Tensor]:
        asked.append((*local.shape, *text.shape, *numbers))
        if len(asked) > 1:
            raise RuntimeError("out of resource: shared memory\nand more")
        return torch.zeros(len(local), text.shape[1]), torch.zeros(0)

    model.fused = head
    assert torch.equal(model.logits(**model.encode(image)), torch.zeros_like(expected)) or trainer == "PLOTPP"
    assert asked[0][-3:] == (0.1, 100, 0.01) and asked[0][3] == 2
    model.meter = HeadMeter(100)
    assert torch.equal(model(image), expected) and len(asked) == 1
    model.meter = None
    with pytest.warns(UserWarning, match="without the fused head: out of resource: shared memory$"):
        assert torch.equal(model(image), expected)
    assert torch.equal(model(image), expected) and len(asked) == 2
