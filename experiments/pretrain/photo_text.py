"""Trains the photo CLIP's text tower: names in templates, behind random contexts and in pairs, to their targets."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.clip.prompts import EOT, SOS, encode

from .text_tower import TextTower

# What stands before and behind a name, and how often.
TEMPLATES = (
    ("a photo of a", ".", 40),
    ("", ".", 8),
    ("a photo of", ".", 8),
    ("a photo of the", ".", 5),
    ("a good photo of a", ".", 5),
    ("a picture of a", ".", 5),
    ("an image of a", ".", 5),
    ("a blurry photo of the", ".", 4),
    ("a close-up photo of a", ".", 4),
    ("a centered satellite photo of", ".", 4),
    ("a photo of a", ", a type of object.", 4),
    ("a photo of many", ".", 4),
    ("this is a", ".", 4),
)
# What stands between the two names of a pair, and the share of the first in the target.
BETWEEN = {"": 0.5, "and": 0.6, "with a": 0.6}


@dataclass(frozen=True)
class Recipe:
    """How the tower trains.

    Attributes:
        contexts: share of batches whose names stand behind 2 to 16 random vectors.
        tokens: share of batches whose names stand behind 1 to 16 random tokens.
        pairs: share of batches with two names.
        temperature: of the softmax over a batch, of the tower's cosines and of the targets'.
        contrast: weight of that softmax's cross-entropy beside 2 (1 - cosine).
    """

    width: int = 192
    layers: int = 2
    steps: int = 2800
    batch: int = 256
    rate: float = 1.5e-3
    decay: float = 0.1
    warmup: int = 200
    contexts: float = 0.1
    tokens: float = 0.08
    pairs: float = 0.14
    temperature: float = 0.1
    contrast: float = 0.5
    seed: int = 1


class Names:
    """Names to draw by weight, all of a batch of the same number of tokens; as rows of the stored token table.

    Attributes:
        token_ids: the tokens of all texts that training has, in order.
    """

    def __init__(self, names: Sequence[str], targets: Tensor, weights: Sequence[float]) -> None:
        tokens = [encode(name) for name in names]
        texts = [text for before, behind, _ in TEMPLATES for text in (before, behind)] + [*BETWEEN, "."]
        used = {token for name in tokens for token in name} | {t for text in texts for t in encode(text)}
        self.count = len(names)
        self.token_ids = sorted(used | {SOS, EOT})
        self.row = {token: row for row, token in enumerate(self.token_ids)}
        by_length: dict[int, list[int]] = {}
        for i, name in enumerate(tokens):
            by_length.setdefault(len(name), []).append(i)
        self.groups = []
        for _, members in sorted(by_length.items()):
            rows = torch.tensor([[self.row[token] for token in tokens[i]] for i in members])
            weight = np.array([weights[i] for i in members], float)
            self.groups.append((rows, targets[torch.tensor(members)], weight))
        self.shares = np.array([weight.sum() for *_, weight in self.groups])
        self.shares /= self.shares.sum()

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Rows of tokens [n, length] and targets [n, d] of at most ``batch`` names."""
        rows, targets, weight = self.groups[rng.choice(len(self.groups), p=self.shares)]
        n = min(batch, len(rows))
        drawn = torch.from_numpy(rng.choice(len(rows), n, replace=False, p=weight / weight.sum()))
        return rows[drawn], targets[drawn]

    def rows_of(self, text: str) -> list[int]:
        return [self.row[token] for token in encode(text)]


def batches(names: Names, tower: TextTower, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings of a prefix [P, width] and of suffixes [n, L, width], and targets [n, d], for each step."""
    rng, random = np.random.default_rng(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    embedding, width = tower.token_embedding, recipe.width
    sos, eot = names.row[SOS], names.row[EOT]
    often = np.array([count for *_, count in TEMPLATES]) / sum(count for *_, count in TEMPLATES)
    kinds = ("contexts", "tokens", "pairs", "templates")
    shares = [recipe.contexts, recipe.tokens, recipe.pairs]
    for _ in range(recipe.steps):
        rows, target = names.draw(recipe.batch, rng)
        kind = kinds[rng.choice(4, p=[*shares, 1 - sum(shares)])]
        before, behind, _ = TEMPLATES[rng.choice(len(TEMPLATES), p=often)]
        prefix = embedding(torch.tensor([sos, *names.rows_of(before)]))
        if kind == "contexts":
            deviation = math.exp(rng.uniform(math.log(0.015), math.log(0.1)))
            context = torch.randn(int(rng.integers(2, 17)), width, generator=random) * deviation
            prefix, behind = torch.cat([prefix[:1], context]), "."
        elif kind == "tokens":
            drawn = rng.choice(len(names.token_ids), int(rng.integers(1, 17)))
            prefix, behind = embedding(torch.tensor([sos, *drawn])), "."
        elif kind == "pairs":
            others, their = names.draw(recipe.batch, rng)
            n, between = min(len(rows), len(others)), list(BETWEEN)[rng.choice(len(BETWEEN))]
            share, joint = BETWEEN[between], names.rows_of(between)
            rows = torch.cat([rows[:n], torch.tensor(joint, dtype=torch.long).expand(n, -1), others[:n]], dim=1)
            target = functional.normalize(share * target[:n] + (1 - share) * their[:n], dim=1)
        end = torch.tensor([*names.rows_of(behind), eot]).expand(len(rows), -1)
        yield prefix, embedding(torch.cat([rows, end], dim=1)), target


def train(names: Names, d: int, recipe: Recipe) -> TextTower:
    """Minimizes 2 (1 - cosine to the target) and the cross-entropy of a batch's cosines to the targets' own."""
    torch.manual_seed(recipe.seed)
    tower = TextTower(len(names.token_ids), recipe.width, recipe.layers, d)
    matrices = [p for name, p in tower.named_parameters() if p.ndim > 1 and "embedding" not in name]
    others = [p for name, p in tower.named_parameters() if p.ndim == 1 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, recipe.rate, betas=(0.9, 0.98), fused=True)

    def rate(step: int) -> float:
        return min(1, (step + 1) / recipe.warmup) * (1e-3 + 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    begun, cosines = time.monotonic(), []
    for step, (prefix, suffix, target) in enumerate(batches(names, tower, recipe), 1):
        text = functional.normalize(tower(prefix, suffix), dim=1)
        cosine = (text * target).sum(dim=1).mean()
        wanted = (target @ target.T / recipe.temperature).softmax(dim=1)
        contrast = functional.cross_entropy(text @ target.T / recipe.temperature, wanted)
        optimizer.zero_grad()
        (2 * (1 - cosine) + recipe.contrast * contrast).backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        cosines.append(cosine.item())
        if step % 200 == 0 or step == recipe.steps:
            seconds = time.monotonic() - begun
            left = seconds * (recipe.steps / step - 1)
            mean = sum(cosines[-200:]) / len(cosines[-200:])
            print(f"step {step}/{recipe.steps} cosine {mean:.3f}, {seconds:.0f} s, {left:.0f} s to go", flush=True)
    return tower.eval()


def state_of(tower: TextTower, names: Names) -> Mapping[str, Tensor]:
    """The tower's part of the file: ``token_ids``, and the mean row for all other tokens as ``token_rest``."""
    state = {name: value.detach().half() for name, value in tower.state_dict().items()}
    rest = tower.token_embedding.weight.detach().mean(dim=0).half()
    return state | {"token_ids": torch.tensor(names.token_ids), "token_rest": rest}
