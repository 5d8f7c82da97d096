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

_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_B = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # transposed
_A = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])  # transposed
_BB, _AA = torch.kron(_B, _B), torch.kron(_A, _A)


def filters(weight: Tensor) -> Tensor:
    """g [c_out, c_in, 3, 3] -> U [16, c_in, c_out]."""
    g = _G.double()
    u = torch.einsum("ia,kcab,jb->ijck", g, weight.double(), g)
    return u.flatten(0, 1).to(weight.dtype).contiguous()


def convolve(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """x [batch, c_in, h, w] padded by 1, U [16, c_in, c_out] -> [batch, c_out, h, w], channels last."""
    n, c, h, w = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    x = F.pad(x, (1, 2 * columns - w + 1, 1, 2 * rows - h + 1)).permute(0, 2, 3, 1).contiguous()
    of_image, of_row, of_column, _ = x.stride()
    tiles = x.as_strided(
        (4, 4, n, rows, columns, c), (of_row, of_column, of_image, 2 * of_row, 2 * of_column, 1)
    ).reshape(16, -1)
    v = (_BB.to(x.dtype) @ tiles).view(16, -1, c)
    y = (_AA.to(x.dtype) @ torch.bmm(v, u).flatten(1)).view(2, 2, n, rows, columns, -1)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * rows, 2 * columns, -1)
    if bias is not None:
        y += bias
    return y[:, :h, :w].contiguous().permute(0, 3, 1, 2)
