"""Our copies of the frozen towers, with and without oneDNN's operators, against PyTorch's and clip's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clip.model import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from tests.oracle import KINDS, plain_layernorms
from tests.trainers.custom_clip import build, error, get_oracle
from trainers.clip import frozen


@pytest.fixture(params=[True, False], autouse=True)
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not frozen.ONEDNN:
        pytest.skip("this PyTorch has no such operators")
    monkeypatch.setattr(frozen, "ONEDNN", request.param)
    monkeypatch.setattr(frozen, "PACKED_ROWS", range(1, 100))
    return request.param


def with_gradient(function: Any, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    return y.detach(), gradient


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 5, 24), (2, 0, 24), (30, 10, 24)])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    ours = frozen.FrozenLinear(layer.weight, layer.bias)
    x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 40)
    for _ in range(2):
        for found, reference in zip(with_gradient(ours, x, upstream), with_gradient(layer, x, upstream), strict=True):
            torch.testing.assert_close(found, reference)
    changed = {"weight": layer.weight + 1}  # as Extra.deltas changes it: what was packed is of no use
    torch.testing.assert_close(
        torch.func.functional_call(ours, changed, (x,)), torch.func.functional_call(layer, changed, (x,))
    )
    moved = ours.double()
    torch.testing.assert_close(moved(x.double()), layer.double()(x.double()))


@pytest.mark.parametrize("gelu", [QuickGELU(), nn.GELU()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_as_clip_has_it(dtype: torch.dtype, gelu: nn.Module) -> None:
    theirs = ResidualAttentionBlock(16, 2).to(dtype).requires_grad_(False)
    theirs.mlp.gelu = gelu
    plain_layernorms(theirs)
    before = {name: p.clone() for name, p in theirs.named_parameters()}
    ours = frozen.Block(theirs)
    x, upstream = torch.randn(3, 5, 16, dtype=dtype), torch.randn(3, 5, 16, dtype=dtype)
    reference = with_gradient(lambda x: theirs(x.transpose(0, 1)).transpose(0, 1), x, upstream)
    for found, expected in zip(with_gradient(ours, x, upstream), reference, strict=True):
        torch.testing.assert_close(found, expected)
    assert all(torch.equal(before[name], p) for name, p in theirs.named_parameters()), "clip's own weights change"


def test_deltas_by_clips_names() -> None:
    """Each of them is added where CLIP has the parameter, whatever is folded or split in ours; gradients too."""
    theirs = ResidualAttentionBlock(16, 2).double().requires_grad_(False)
    plain_layernorms(theirs)
    ours = frozen.Block(theirs)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    deltas = {name: torch.randn_like(p).requires_grad_() for name, p in theirs.named_parameters()}
    for name, delta in deltas.items():
        given = {name: delta}
        plain = {name: theirs.get_parameter(name) + delta}
        out = torch.func.functional_call(theirs, plain, (x.transpose(0, 1),)).transpose(0, 1)
        found = torch.func.functional_call(ours, ours.changed(name, delta), (x,))
        torch.testing.assert_close(found, out)
        wanted = torch.autograd.grad(out.square().sum(), [*given.values()])
        had = torch.autograd.grad(found.square().sum(), [*given.values()])
        torch.testing.assert_close(had, wanted)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(12)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_convolution(layout: torch.memory_format, norm: nn.Module, add: bool, relu: bool) -> None:
    conv = nn.Conv2d(8, 12, 3, padding=1, stride=2).to(memory_format=layout)
    x, residual = torch.randn(2, 8, 9, 9).to(memory_format=layout), torch.randn(2, 12, 5, 5)
    residual = residual.to(memory_format=layout)
    reference = norm.eval()(conv(x)) + (residual if add else 0)
    ours = frozen.convolution(conv, norm, x, residual.clone() if add else None, relu)
    torch.testing.assert_close(ours, reference.relu() if relu else reference)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_encoder_as_clip_has_it(kind: str) -> None:
    model = build("PLOT", kind, torch.float32)
    oracle = get_oracle(kind)
    for ours, reference in zip(model.image_encoder(oracle.image.float()), (oracle.pooled, oracle.local), strict=True):
        assert error(ours, reference) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_that_is_no_number_is_seen_in_its_image_alone(kind: str) -> None:
    """oneDNN would rectify it to 0, and nobody would notice."""
    model = build("PLOT", kind, torch.float32)
    image = get_oracle(kind).image.float()
    image[1, 0, 5, 7] = torch.nan
    for features in model.image_encoder(image):
        assert [bool(f.isfinite().all()) for f in features] == [True, False, True]
