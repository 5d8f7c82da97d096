"""Convolutions of 3 x 3 by Winograd's minimal filtering: 16 products for four outputs, where there would be 36.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(2 x 2, 3 x 3): Y = A^T [U * V] A with
U = G g G^T of a filter g and V = B^T d B of a 4 x 4 tile d of the input. Its factors are so near 1 that float32 loses
no more than in the plain sum. The transforms pass over memory several times: it pays from 256 channels on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 256
TILES = 784  # at once: four images of 28 x 28, whose 16 values a tile and channel stay in a CPU's last cache

_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def filters(weight: Tensor) -> Tensor:
    """g [c_out, c_in, 3, 3] -> U [4 columns * 4 rows, c_in, c_out]."""
    g = _G.double()
    u = torch.einsum("ia,kcab,jb->jick", g, weight.double(), g)
    return u.flatten(0, 1).to(weight.dtype).contiguous()


def convolve_relu(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """x [batch, c_in, h, w] padded by 1, U of ``filters`` -> [batch, c_out, h, w], rectified, channels last."""
    n, _, h, w = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    x = F.pad(x, (1, 2 * columns - w + 1, 1, 2 * rows - h + 1)).permute(0, 2, 3, 1)
    y = x.new_empty(n, rows, 2, columns, 2, u.shape[2])
    at_once = max(1, TILES // (rows * columns))
    for part, out in zip(x.split(at_once), y.split(at_once), strict=True):
        _convolve_relu(part, u, bias, out.permute(2, 4, 0, 1, 3, 5))
    return y.view(n, 2 * rows, 2 * columns, u.shape[2])[:, :h, :w].contiguous().permute(0, 3, 1, 2)


def _convolve_relu(x: Tensor, u: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """x [n, 2 rows + 2, 2 columns + 2, c_in] -> y [2, 2, n, rows, columns, c_out]."""
    _, _, n, rows, columns, c_out = y.shape
    c_in = x.shape[3]
    half, v = x.new_empty(4, n, rows, x.shape[2], c_in), x.new_empty(4, 4, n, rows, columns, c_in)
    _into_tiles(x, 1, half)
    _into_tiles(half, 3, v)
    m = torch.bmm(v.view(16, -1, c_in), u).view(4, 4, n, rows, columns, c_out)
    if bias is not None:
        m[1, 1] += bias  # which goes to all four outputs as it is
    half = x.new_empty(2, 4, n, rows, columns, c_out)
    _out_of_tiles(m, half)
    _out_of_tiles(half.transpose(0, 1), y)
    y.relu_()


def _into_tiles(d: Tensor, dim: int, v: Tensor) -> None:
    """B^T along ``dim``, of length 2 n + 2, where every second value begins a tile -> v [4, ..., n, ...]."""
    even, odd = d.unflatten(dim, (-1, 2)).unbind(dim + 1)
    n = even.shape[dim] - 1
    d0, d2, d1, d3 = (values.narrow(dim, start, n) for values in (even, odd) for start in (0, 1))
    torch.sub(d0, d2, out=v[0])
    torch.add(d1, d2, out=v[1])
    torch.sub(d2, d1, out=v[2])
    torch.sub(d1, d3, out=v[3])


def _out_of_tiles(m: Tensor, y: Tensor) -> None:
    """A^T along the first dimension, of 4 -> y, of 2."""
    torch.add(m[0], m[1], out=y[0]).add_(m[2])
    torch.sub(m[1], m[2], out=y[1]).sub_(m[3])
