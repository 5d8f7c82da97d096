"""Winograd's convolution against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainers.clip import products, winograd

SIZES = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(0, 3), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(1, 99))
def test_any_shape(h: int, w: int, n: int, c_in: int, c_out: int, has_bias: bool, tiles: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(n, c_in, h, w, dtype=torch.float64), torch.randn(c_out, c_in, 3, 3, dtype=torch.float64)
    bias = torch.randn(c_out, dtype=torch.float64) if has_bias else None
    at_once, winograd.TILES = winograd.TILES, tiles
    try:
        y = winograd.convolve_relu(x, winograd.filters(weight), bias)
    finally:
        winograd.TILES = at_once
    torch.testing.assert_close(y, F.relu(F.conv2d(x, weight, bias, padding=1)), rtol=0, atol=1e-12)
    assert not n or y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channels", "size"), [(256, 14), (512, 7)])
def test_float32_is_as_near_as_the_plain_sum(channels: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    convolve, used = winograd.convolve_relu, []
    monkeypatch.setattr(winograd, "convolve_relu", lambda *args: used.append(1) or convolve(*args))
    conv = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, channels, size, size).contiguous(memory_format=torch.channels_last)
    exact = F.relu(F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1))  # type: ignore[union-attr]
    ours = products.convolution(conv, nn.Identity(), x)
    plain = F.relu(conv(x))
    assert (ours - exact).abs().max() <= (plain - exact).abs().max() < 1e-5 * exact.abs().max()
    assert len(used) == products.ONEDNN
    with torch.no_grad():
        conv.weight.mul_(2)
    assert (products.convolution(conv, nn.Identity(), x) - ours).abs().max() > 0.1  # no stale copy
