"""Where SOS, context, class name and EOT stand in a prompt, and how the classes' prompts are packed.

A prompt is SOS, n_ctx context vectors, the class name, "." and EOT, with the name at the ``end``, in the
``middle`` or in ``front`` of the context (CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models",
IJCV 2022, section 3.1). What all classes share in front is the prefix [G, P, d]; the rest, up to EOT, is a
class's suffix. Suffixes are short, so several are packed to a row: suffix [G, R, W, d]. ``Layout`` says where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
from clip.model import CLIP
from clip.simple_tokenizer import SimpleTokenizer
from torch import Tensor
from yacs.config import CfgNode

import dassl.utils

UserError: type[Exception] = getattr(dassl.utils, "UserError", ValueError)  # upstream Dassl has none

POSITIONS = ("end", "middle", "front")
CONTEXT_LENGTH = 77
ROW_TOKENS = 64  # wide enough for efficient attention products, narrow enough to attend to little else

_tokenizer = SimpleTokenizer()
encode = _tokenizer.encode  # the tokens of a text, without SOS and EOT
SOS = _tokenizer.encoder["<|startoftext|>"]
EOT = _tokenizer.encoder["<|endoftext|>"]


class Words(NamedTuple):
    """How a text tower reads texts.

    Attributes:
        encode: a text -> its tokens, without those that stand around every text.
        start: the tokens in front of every text; SigLIP has none.
        end: the token behind every text.
        pad: the token that fills a prompt up.
        length: the number of tokens of a prompt.
    """

    encode: Callable[[str], list[int]]
    start: tuple[int, ...]
    end: int
    pad: int = 0
    length: int = CONTEXT_LENGTH


CLIPS = Words(encode, (SOS,), EOT)


def words_of(clip_model: CLIP) -> Words:
    return getattr(clip_model, "words", CLIPS)


class Layout(nn.Module):
    """Places of the classes' suffixes, of ``lengths`` tokens behind a prefix of P tokens, in R rows of W tokens.

    Attributes:
        position: [R, W], a token's place in its 77-token prompt.
        mask: [R, W, P + W], whether a token sees a token of the prefix or of its row.
        eot: [R, E], the places of EOT in each row.
        slot: [n_cls], a class's index into the flattened ``eot``.
        token: [total], the suffixes' tokens, class after class, as indices into the flattened rows.
    """

    position: Tensor
    mask: Tensor
    eot: Tensor
    slot: Tensor
    token: Tensor

    def __init__(self, lengths: Sequence[int], P: int) -> None:
        super().__init__()
        rows = _pack(lengths)
        W = max(sum(lengths[k] for k in row) for row in rows)
        R, E = len(rows), max(map(len, rows))
        eot = torch.zeros(R, E, dtype=torch.long)
        start, slot = torch.empty(2, len(lengths), dtype=torch.long)
        for r, row in enumerate(rows):
            at = 0
            for e, k in enumerate(row):
                start[k], slot[k] = r * W + at, r * E + e
                at += lengths[k]
                eot[r, e] = at - 1
        token = torch.cat([start[k] + torch.arange(n) for k, n in enumerate(lengths)])
        position, owner = torch.full((R, W), P), torch.full((R, W), -1)
        position.view(-1)[token] += torch.cat([torch.arange(n) for n in lengths])
        owner.view(-1)[token] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        own = (owner[:, :, None] == owner[:, None, :]).tril()
        mask = torch.cat([torch.ones(R, W, P, dtype=torch.bool), own], dim=2)
        buffers = {"position": position, "mask": mask, "eot": eot, "slot": slot, "token": token}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def rows(self, tokens: Tensor) -> Tensor:
        """Lays out indices [total], class after class, as [R, W]; padding holds 0."""
        rows = torch.zeros_like(self.position).flatten()
        rows[self.token] = tokens
        return rows.view_as(self.position)


def _pack(lengths: Sequence[int]) -> list[list[int]]:
    """Packs classes into rows of about ROW_TOKENS tokens: longest first, each into the emptiest row."""
    n_rows = max(1, round(sum(lengths) / max(ROW_TOKENS, max(lengths))))
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    filled = [0] * n_rows
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        r = filled.index(min(filled))
        rows[r].append(k)
        filled[r] += lengths[k]
    return [row for row in rows if row]


def tokenize_texts(ctx_init: str, n_prompts: int, words: Words = CLIPS) -> list[list[int]]:
    """The tokens of CTX_INIT's texts, one for all prompts or one for each, separated by "|"; [] without any.

    Raises:
        UserError: the number of texts or their lengths do not fit.
    """
    if not ctx_init:
        return []
    texts = [text.replace("_", " ").strip() for text in ctx_init.split("|")]
    tokens = [words.encode(text) for text in texts]
    if len(texts) not in (1, n_prompts):
        raise UserError(
            f"CTX_INIT has {len(texts)} texts for {n_prompts} prompts; give one, or {n_prompts} separated by '|'"
        )
    if len({len(t) for t in tokens}) > 1 or not tokens[0]:
        counts = ", ".join(f"'{text}' {len(t)}" for text, t in zip(texts, tokens, strict=True))
        raise UserError(f"the texts of CTX_INIT must have one number of tokens, at least 1; they have: {counts}")
    if 3 + len(tokens[0]) > words.length:
        raise UserError(f"CTX_INIT has {len(tokens[0])} tokens; a prompt holds {words.length} in all")
    return tokens


def _embedded(clip_model: CLIP, tokens: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    table = clip_model.token_embedding
    return table(torch.tensor(tokens, dtype=torch.long, device=table.weight.device)).detach()


def initial_contexts(cfg: CfgNode, n_cls: int, clip_model: CLIP, n_prompts: int = 1) -> Tensor:
    """The context vectors training starts from: [n_prompts, n_ctx, d], with CSC [n_prompts, n_cls, n_ctx, d].

    Args:
        cfg: a method's node, with N_CTX, CTX_INIT and, where the method has it, CSC.
    With CTX_INIT the contexts are the words' embeddings. One text serves all prompts, and noise shifts each copy but
    the first; several texts, separated by "|", serve a prompt each. Without CTX_INIT the contexts are N(0, 0.02^2).
    Raises:
        UserError: the number of texts or their lengths do not fit.
    """
    dtype, width = clip_model.dtype, clip_model.token_embedding.embedding_dim
    per_class = (n_cls,) if cfg.get("CSC", False) else ()
    if not cfg.CTX_INIT:
        return torch.empty(n_prompts, *per_class, cfg.N_CTX, width, dtype=dtype).normal_(std=0.02)
    tokens = tokenize_texts(cfg.CTX_INIT, n_prompts, words_of(clip_model))
    ctx = _embedded(clip_model, tokens).to(dtype)
    if len(tokens) < n_prompts:
        noise = torch.empty(n_prompts, *ctx.shape[1:], dtype=dtype).normal_(std=0.02)
        noise[0] = 0
        ctx = ctx + noise.to(ctx.device)
    return ctx[:, None].repeat(1, n_cls, 1, 1) if per_class else ctx.clone()


class Packed(nn.Module):
    """Packed suffixes of some classes: ``layout``, and index [R, W] into a table of tokens and contexts."""

    index: Tensor

    def __init__(self, suffixes: Sequence[Sequence[int]], P: int) -> None:
        super().__init__()
        self.layout = Layout([len(s) for s in suffixes], P)
        flat = torch.tensor([i for suffix in suffixes for i in suffix])
        self.register_buffer("index", self.layout.rows(flat), persistent=False)


class PromptBuilder(nn.Module):
    """Puts contexts and class names together, for one list of classes.

    Args:
        classnames: underscores stand for spaces.
        n_ctx: the number of context vectors; 0 for hand-written prompts.
        position: 'end', 'middle' or 'front', of the class name.
        csc: whether each class has its own contexts, which then belong to the suffix.
        end: the end of the prompt, tokenized together with the name.
        skip: tokens that are left out at the beginning of the names.
    Raises:
        UserError: a prompt is longer than the tower's, CLIP's 77 tokens.
    """

    embedding: Tensor

    def __init__(
        self,
        classnames: Sequence[str],
        clip_model: CLIP,
        n_ctx: int = 0,
        position: str = "end",
        csc: bool = False,
        end: str = ".",
        skip: int = 0,
    ) -> None:
        super().__init__()
        # Context vectors before the name. The published code puts the first half there for "middle".
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        self.n_prefix = 0 if csc else before
        words, suffixes = words_of(clip_model), []
        self.P = len(words.start) + self.n_prefix
        for k, classname in enumerate(classnames):
            name = classname.replace("_", " ")
            text, n_name = words.encode(name + end)[skip:], len(words.encode(name)[skip:])
            # A token is 0 or more, so -1 - i can stand for the i-th context vector.
            own = [-1 - (k * n_ctx + i if csc else i) for i in range(n_ctx)]
            front = own[self.n_prefix : before]
            suffixes.append([*front, *text[:n_name], *own[before:], *text[n_name:], words.end])
            if (n := self.P + len(suffixes[-1])) > words.length:
                raise UserError(
                    f"the prompt of class '{name}' has {n} tokens ({n_ctx} of context); a prompt holds "
                    f"{words.length}: shorten the name, N_CTX or CTX_INIT"
                )
        fixed = [*words.start, *sorted({t for suffix in suffixes for t in suffix if t >= 0})]
        row_of = {token: i for i, token in enumerate(fixed)}
        embedding = _embedded(clip_model, fixed).to(clip_model.dtype)
        self.register_buffer("embedding", embedding, persistent=False)  # [n_tokens, d], SOS first
        self.suffix_has_ctx = any(t < 0 for suffix in suffixes for t in suffix)
        self.suffixes = [[row_of[t] if t >= 0 else len(fixed) - 1 - t for t in suffix] for suffix in suffixes]
        self.whole = Packed(self.suffixes, self.P)
        self.share: Packed | None = None

    def split(self, classes: range) -> None:
        """Under gradients, build only these classes' prompts: the share of one process."""
        self.share = Packed(self.suffixes[classes.start : classes.stop], self.P).to(self.embedding.device)

    @property
    def packed(self) -> Packed:
        return self.share if self.share is not None and torch.is_grad_enabled() else self.whole

    @property
    def layout(self) -> Layout:
        return self.packed.layout

    def forward(self, ctx: Tensor) -> tuple[Tensor, Tensor]:
        """ctx [G, n_ctx, d] or [G, n_cls, n_ctx, d] -> prefix [G, P, d], suffix [G or 1, R, W, d]."""
        G, index = ctx.shape[0], self.packed.index
        sos = self.embedding[: self.P - self.n_prefix].expand(G, -1, -1)
        prefix = torch.cat([sos, ctx[:, : self.n_prefix]], dim=1) if self.n_prefix else sos
        if not self.suffix_has_ctx:
            return prefix, self.embedding[index][None]
        table = torch.cat([self.embedding.expand(G, -1, -1), ctx.flatten(1, -2)], dim=1)
        return prefix, table[:, index]
