"""Random problems for PLOT's head, and the fused head's answers to them by Triton's interpreter:

TRITON_INTERPRET=1 python -m tests.trainers.fused_problems COUNT FILE
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.prompt_trainer import unit
from trainers.sinkhorn import counted_sinkhorn

KINDS = (*("near",) * 5, "random", "equal", "opposite")
EPS = (1e-4, 1e-3, 0.01, 0.049, 0.05, 0.1, 0.1, 1.0, 1e4)


@dataclass
class Problem:
    """local [batch, M, d] and text [N, n_cls, d], of unit length in float32; weight is the scores' gradient."""

    local: Tensor
    text: Tensor
    eps: float
    max_iter: int
    thresh: float
    weight: Tensor

    def similarity(self) -> Tensor:
        """[batch, n_cls, M, N], float64."""
        return torch.einsum("bmd,nkd->bkmn", self.local.detach().double(), self.text.detach().double())

    def solution(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scores [batch, n_cls], and the gradients of their weighted sum for local and text, in float64."""
        similarity, local, text = self.similarity(), self.local.detach().double(), self.text.detach().double()
        plan = counted_sinkhorn(1 - similarity, self.eps, self.max_iter, self.thresh)[0]
        weighted = plan * self.weight.double()[:, :, None, None]
        of_local = torch.einsum("bkmn,nkd->bmd", weighted, text)
        return (plan * similarity).sum(dim=(2, 3)), of_local, torch.einsum("bkmn,bmd->nkd", weighted, local)

    def iterations(self) -> Tensor:
        return counted_sinkhorn(1 - self.similarity().float(), self.eps, self.max_iter, self.thresh)[1]

    @property
    def bound(self) -> float:
        """Of the absolute error in float32, where a similarity's rounding is 6e-4 eps at eps 1e-4."""
        return 5e-5 if self.eps < 1e-3 else 1e-5

    @property
    def determined(self) -> bool:
        """Whether float32 decides when to stop: after one iteration the rounding of r is below ``thresh``.

        r has that of the similarities, over eps.
        """
        log_sum = torch.logsumexp((self.similarity() - 1) / self.eps, dim=3)
        r = (-log_sum).exp().mean(dim=2) / self.local.shape[1]
        return bool(((1e-6 + 2e-7 / self.eps) * r < self.thresh).all())


def problems(count: int) -> list[Problem]:
    """1 to 32 prompts, 1 to 257 local features, near, equal or opposite to them, and any eps."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)

    def problem(i: int) -> Problem:
        M, N = draw.choice([1, 2, 9, 16, 49, 50, 196]), draw.choice([1, 2, 3, 4, 16])
        M, N = {3: (257, 4), 4: (49, 32), 5: (257, 32), 6: (1, 4), 7: (49, 1), 8: (1, 1)}.get(i % 40, (M, N))
        eps, max_iter, thresh = draw.choice(EPS), draw.choice([1, 20, 100]), draw.choice([0.01, 0.01, 1e-4])
        batch, n_cls = (2, 3) if i % 10 == 9 else (1, 1)
        d = 33 if i % 10 == 9 else 32  # one more than a block, or a block
        base, kind = torch.randn(d, generator=generator), draw.choice(KINDS)
        near = min(1.0, math.sqrt(6 * eps))  # costs of some 6 eps, if eps is small

        def features(rows: int, columns: int, sign: int) -> Tensor:
            noise = torch.randn(rows, columns, d, generator=generator)
            return {"random": noise, "near": base + near * noise}.get(kind, sign * base + 0 * noise)

        local, text = features(batch, M, 1), features(N, n_cls, -1 if kind == "opposite" else 1)
        weight = torch.randn(batch, n_cls, generator=generator)
        return Problem(unit(local), unit(text), eps, max_iter, thresh, weight)

    return [problem(i) for i in range(count)]


def main(count: int, path: Path) -> None:
    """Saves scores, their gradients for local and text, and iterations."""
    from trainers.clip.fused_head import fused_head

    answers = []
    for p in problems(count):
        local, text = p.local.requires_grad_(), p.text.requires_grad_()
        score, iterations = fused_head(local, text, p.eps, p.max_iter, p.thresh)
        (p.weight * score).sum().backward()
        answers.append((score.detach(), local.grad, text.grad, iterations))
    torch.save(answers, path)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
