"""A text tower of CLIP's architecture that trains fast: a batch shares what stands in front of the names.

Its parameters have CLIP's names. CLIP's transformer is causal, so the shared prefix is computed once. All names of a
batch have the same number of tokens, so that nothing is padded, and the last layer is computed at EOT alone.
"""

import torch
from clip.model import ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn import functional

from trainers.clip.prompts import CONTEXT_LENGTH

HEAD_WIDTH = 64  # CLIP's reader takes width / 64 heads


class TextTower(nn.Module):
    """CLIP's text tower, initialized as CLIP's.

    Args:
        rows: of the token table.
        d: dimensions of a text feature.
    """

    def __init__(self, rows: int, width: int, layers: int, d: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(rows, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT_LENGTH, width) * 0.01)
        self.transformer = Transformer(width, layers, width // HEAD_WIDTH)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, d) * width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * layers * width) ** -0.5)

    def forward(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Embeddings prefix [P, width], SOS first, and suffix [batch, L, width], EOT last -> features [batch, d]."""
        P, (_, L, _) = len(prefix), suffix.shape
        place = self.positional_embedding
        shared, own = (prefix + place[:P])[None], suffix + place[P : P + L]
        mask = torch.ones(L, P + L, dtype=torch.bool).tril(P)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            shared_qkv, own_qkv = _project(block, block.ln_1(shared)), _project(block, block.ln_1(own))
            own = _finish(block, own, _attend(own_qkv, shared_qkv, mask))
            shared = _finish(block, shared, functional.scaled_dot_product_attention(*shared_qkv, is_causal=True))
        q, k, v = _project(last, last.ln_1(own))
        own = _finish(last, own[:, -1:], _attend((q[:, :, -1:], k, v), _project(last, last.ln_1(shared)), None))
        return self.ln_final(own[:, 0]) @ self.text_projection


QKV = tuple[Tensor, Tensor, Tensor]


def _project(block: ResidualAttentionBlock, x: Tensor) -> QKV:
    """x [batch, L, width] -> q, k, v [batch, heads, L, HEAD_WIDTH]."""
    qkv = functional.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = (part.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return q, k, v


def _attend(own: QKV, shared: QKV, mask: Tensor | None) -> Tensor:
    """Attention of a batch's own tokens to the shared ones and, by ``mask``, to their own."""
    k, v = (torch.cat([s.expand(len(o), -1, -1, -1), o], dim=2) for s, o in zip(shared[1:], own[1:], strict=True))
    return functional.scaled_dot_product_attention(own[0], k, v, attn_mask=mask)


def _finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """What a block does after its attention [batch, heads, L, HEAD_WIDTH]."""
    x = x + block.attn.out_proj(attended.transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln_2(x))
