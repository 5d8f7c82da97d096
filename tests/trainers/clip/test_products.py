"""Products with frozen weights: through oneDNN's operators, and without them, against PyTorch's own layers."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clip.model import QuickGELU
from torch import Tensor, nn

from tests.oracle import KINDS
from tests.trainers.custom_clip import build, error, get_oracle
from trainers.clip import products, winograd


@pytest.fixture(params=[True, False], autouse=True)
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not products.ONEDNN:
        pytest.skip("this PyTorch has no such operators")
    monkeypatch.setattr(products, "ONEDNN", request.param)
    return request.param


def with_gradient(function: Any, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    return y.detach(), gradient


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 5, 24), (2, 0, 24)])
def test_linear(shape: tuple[int, ...], bias: bool, pack: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 40)
    found = with_gradient(lambda x: products.linear(x, layer.weight, layer.bias, pack), x, upstream)
    for ours, reference in zip(found, with_gradient(layer, x, upstream), strict=True):
        torch.testing.assert_close(ours, reference)


def test_linear_of_parts_of_a_weight_that_changes() -> None:
    """No part is taken for another, and none for what it was before."""
    weight, x = nn.Parameter(torch.randn(60, 24), requires_grad=False), torch.randn(4, 2, 24).transpose(0, 1)

    def through_an_empty_one() -> None:  # the new numbers may come to the old ones' address
        weight.data = torch.empty(0)
        weight.data = torch.randn(60, 24)

    for change in (lambda: None, lambda: weight.mul_(2), *[through_an_empty_one] * 5):
        change()
        for part in weight.split([20, 40]) + weight.split([40, 20]):
            torch.testing.assert_close(products.linear(x, part, None, pack=True), x @ part.t())


def test_what_is_kept_of_a_weight_is_not_the_weights_own() -> None:
    """It is not pickled with it, and gone with it."""
    layer = nn.Linear(24, 40).requires_grad_(False)
    before = len(products._PACKS)
    products.linear(torch.randn(3, 24), layer.weight, layer.bias, pack=True)
    assert len(products._PACKS) == before + products.ONEDNN
    assert pickle.loads(pickle.dumps(layer)).weight.equal(layer.weight)
    assert copy.deepcopy(layer).weight.equal(layer.weight)
    del layer
    assert len(products._PACKS) == before


def test_a_trained_weight_and_one_of_inference_mode() -> None:
    x, trained = torch.randn(3, 24), torch.randn(40, 24, requires_grad=True)
    products.linear(x, trained, None, pack=True).sum().backward()
    assert trained.grad is not None and trained.grad.abs().sum() > 0
    with torch.inference_mode():
        weight = torch.randn(40, 24)
        torch.testing.assert_close(products.linear(x, weight, None, pack=True), x @ weight.t())


def test_a_second_derivative_is_refused(onednn: bool) -> None:
    """Rather than a wrong one."""
    layers = SimpleNamespace(c_fc=nn.Linear(16, 64), c_proj=nn.Linear(64, 16))
    x = torch.randn(3, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(products.mlp(SimpleNamespace(mlp=layers), x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 16), (2, 0, 16)])
def test_mlp(shape: tuple[int, ...], light: bool, pack: bool) -> None:
    layers = SimpleNamespace(c_fc=nn.Linear(16, 64), c_proj=nn.Linear(64, 16))
    plain = nn.Sequential(layers.c_fc, QuickGELU(), layers.c_proj).requires_grad_(False)
    x, upstream = torch.randn(shape), torch.randn(shape)
    found = with_gradient(lambda x: products.mlp(SimpleNamespace(mlp=layers), x, light, pack), x, upstream)
    for ours, reference in zip(found, with_gradient(plain, x, upstream), strict=True):
        torch.testing.assert_close(ours, reference)


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
    ours = products.convolution(conv, norm, x, residual.clone() if add else None, relu)
    torch.testing.assert_close(ours, reference.relu() if relu else reference)


@pytest.mark.parametrize("by_winograd", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_encoder_as_clip_has_it(kind: str, by_winograd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_winograd:  # as on the widths of real ones
        monkeypatch.setattr(winograd, "CHANNELS", 1)
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
