"""Top-k accuracy of a batch, as training steps print it."""

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Percentage of `target [batch]` among the k largest of `output [batch, n_cls]`, a tensor [1] per k.

    Of a tuple of outputs the first counts.
    """
    logits = output if isinstance(output, torch.Tensor) else output[0]
    hits = logits.topk(max(topk), dim=1).indices == target.view(-1, 1)  # [batch, max k]
    return [hits[:, :k].any(dim=1).float().sum(0, keepdim=True) * (100.0 / len(target)) for k in topk]
