"""Finished runs as the tables see them: read from ``result.json`` files, sorted into cells, refused where mixed."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.utils import UserError
from experiments.recipes import BACKBONES, prescribed_epochs, recipe
from runs.result import hash_of_checkpoints, load_result

from . import significance

# Overrides that a table's other rules look after (epochs, backbone), or that change nothing a table shows.
LOOKED_AFTER = {
    "OPTIM.MAX_EPOCH",
    "INPUT.SIZE",
    "MODEL.BACKBONE.NAME",
    "MODEL.BACKBONE.ALLOW_TORCHSCRIPT",
    "DATALOADER.TEST.BATCH_SIZE",
    "DATASET.SUBSAMPLE_CLASSES",
    "TRAIN.CHECKPOINT_FREQ",
}


@dataclass(frozen=True)
class Run:
    """A finished run, or the test of one (``trained``) on other data; ``path`` is its result.json's."""

    path: Path
    result: dict[str, Any]
    trained: Run | None = None

    @property
    def source(self) -> Run:
        """The run whose prompt it is."""
        return self.trained or self

    @property
    def dataset(self) -> str:
        return self.result["dataset"]

    @property
    def trainer(self) -> str:
        return self.source.result["trainer"]

    @property
    def seed(self) -> int:
        return self.source.result["seed"]

    @property
    def shots(self) -> int:
        return self.source.result["shots"]

    @property
    def epochs(self) -> int:
        return self.source.result["epochs"]

    @property
    def accuracy(self) -> float:
        return float(self.result["accuracy"])

    @property
    def overrides(self) -> dict[str, Any]:
        return self.source.result.get("overrides") or {}

    def option(self, key: str, default: Any = None) -> Any:
        """One of the method's own options, as tested."""
        return (self.result.get("options") or {}).get(key, default)

    @property
    def backbone(self) -> str:
        """What tells backbones apart: the weights' hash, else the name."""
        return self.result["backbone"].get("sha256") or self.backbone_name

    @property
    def backbone_name(self) -> str:
        return str(self.result["backbone"].get("name"))

    @functools.cached_property
    def as_prescribed(self) -> bool:
        """Whether it was trained for the epochs that the recipe prescribes."""
        return self.epochs == prescribed_epochs(self.trainer, self.source.dataset, max(1, self.shots))

    def predictions(self) -> dict[str, tuple[int, int]] | None:
        """Image to (label, prediction); None for a run that has kept none.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path.with_name("predictions.json")
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            pairs = zip(kept["label"], kept["prediction"], strict=True)
            return dict(zip(kept["image"], pairs, strict=True))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"'{path}' is damaged ({' '.join(str(error).split())}); test the run again") from error


def read_runs(out: Path) -> list[Run]:
    """Every finished run under a folder, and every test of one.

    Raises:
        UserError: a result.json is damaged.
    """
    found = {path.parent: Run(path, load_result(path)) for path in sorted(out.rglob("result.json"))}
    tested = []
    for directory, run in found.items():
        inside = directory.parent.name == "eval"
        if inside and directory.parent.parent not in found:
            continue  # the test of a run that is itself not finished
        if inside and run.result.get("tested") not in (None, hash_of_checkpoints(directory.parent.parent)):
            continue  # the test of checkpoints that are no more
        tested.append(Run(run.path, run.result, found[directory.parent.parent]) if inside else run)
    return tested


@dataclass(frozen=True)
class Cell:
    """The runs behind one number: one a seed."""

    runs: tuple[Run, ...] = ()

    @property
    def by_seed(self) -> dict[int, float]:
        """Accuracy by seed; with --mixed the mean of a seed's runs."""
        seeds: dict[int, list[float]] = {}
        for run in self.runs:
            seeds.setdefault(run.seed, []).append(run.accuracy)
        return {seed: sum(values) / len(values) for seed, values in sorted(seeds.items())}

    @property
    def mean(self) -> float | None:
        return significance.mean(list(self.by_seed.values()))

    @property
    def std(self) -> float | None:
        return significance.deviation(list(self.by_seed.values()))

    def paired(self, other: Cell) -> tuple[list[float], list[float]]:
        """The accuracies of the seeds that both have."""
        ours, theirs = self.by_seed, other.by_seed
        common = [seed for seed in ours if seed in theirs]
        return [ours[seed] for seed in common], [theirs[seed] for seed in common]


def select(
    candidates: Iterable[Run], trainer: str, dataset: str, shots: int, varied: Collection[str] = (), **options: Any
) -> Cell:
    """The runs of a cell: as the recipe has them, but for what ``varied`` names (override keys).

    Args:
        options: the method's options that are asked for, such as MATCH="uniform".
    """
    shots = 0 if trainer == "ZeroshotCLIP" else shots
    chosen = [
        run
        for run in candidates
        if (run.trainer, run.dataset, run.shots) == (trainer, dataset, shots)
        and run.result.get("subsample_classes", "all") == run.source.result.get("subsample_classes", "all") == "all"
        and usual(run, varied)
        and all(run.option(key, value) == value for key, value in options.items())
    ]
    return Cell(tuple(chosen))


def usual(run: Run, varied: Collection[str] = ()) -> bool:
    """Whether a run follows the recipe, but for epochs, backbone and the overrides in ``varied``."""
    allowed = LOOKED_AFTER | set(varied)
    if set(run.overrides) - allowed or set(run.result.get("overrides") or ()) - allowed:
        return False
    config = run.source.result.get("config")
    if config is None:
        return True
    prescribed, _ = recipe(run.trainer, run.source.dataset, max(1, run.shots), backbone="rn50")
    return _family(config) == _family(prescribed)


def _family(config: str) -> str:
    """A config's name without its backbone and epochs: rn101_ep50 and vit_b16 are CoOp's same config."""
    return re.sub(r"_ep\d+(?=$|_ctx)", "", re.sub(rf"^({'|'.join(BACKBONES)})(?=_|$)", "", config))


def of_backbone(found: Sequence[Run], backbone: str) -> list[Run]:
    """The runs on one backbone, by its name, its config's name or the start of its weights' hash."""
    name = BACKBONES.get(backbone, backbone)
    return [run for run in found if run.backbone_name == name or run.backbone.startswith(name)]


def check_unmixed(used: Sequence[Run], mixed: bool) -> list[str]:
    """Notes on what is mixed, for a table that was asked for so.

    Raises:
        UserError: the runs differ in backbone or epochs, or two are the same run twice, and ``mixed`` is off.
    """
    problems = []
    backbones = Counter(run.backbone for run in used)
    if len(backbones) > 1:
        example = {run.backbone: run for run in reversed(used)}
        named = "; ".join(
            f"{run.backbone_name} (weights {run.backbone[:8]}, {backbones[key]} runs, such as '{run.path.parent}')"
            for key, run in sorted(example.items(), key=lambda item: -backbones[item[0]])
        )
        problems.append(f"mixed backbones: {named}")
    learned = [run for run in used if run.epochs > 0]
    other = [run for run in learned if not run.as_prescribed]
    if other and len({run.epochs for run in learned}) > 1:
        expected = prescribed_epochs(other[0].trainer, other[0].source.dataset, max(1, other[0].shots))
        problems.append(
            f"mixed epochs: {len(other)} of {len(learned)} runs have others than the recipe's, such as "
            f"{other[0].epochs} (prescribed: {expected}) in '{other[0].path.parent}'"
        )
    if problems and not mixed:
        raise UserError("; ".join(problems) + "; choose with --backbone or another --out, or allow it with --mixed")
    return problems


def check_unique(cell: Cell, mixed: bool) -> None:
    """Raises UserError if a seed has two runs and ``mixed`` is off."""
    seen: dict[int, Run] = {}
    for run in cell.runs:
        if run.seed in seen and not mixed:
            raise UserError(
                f"two runs for one place of the table, '{seen[run.seed].path.parent}' and '{run.path.parent}': move "
                "one away, or take their mean with --mixed"
            )
        seen[run.seed] = run


def discordant(first: Run, second: Run) -> tuple[int, int] | None:
    """Images that only the first run has right, and only the second; None unless both kept the same images."""
    a, b = first.predictions(), second.predictions()
    if a is None or b is None or {k: v[0] for k, v in a.items()} != {k: v[0] for k, v in b.items()}:
        return None
    right = [(a[k][0] == a[k][1], b[k][0] == b[k][1]) for k in a]
    return sum(x and not y for x, y in right), sum(y and not x for x, y in right)


def shared_settings(used: Sequence[Run]) -> list[str]:
    """KEY VALUE pairs, on epochs and backbone, that the runs of a table have in common, for its commands."""
    common: list[str] = []
    for key in ("INPUT.SIZE", "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.ALLOW_TORCHSCRIPT", "OPTIM.MAX_EPOCH"):
        concerned = [run for run in used if run.epochs > 0 or key != "OPTIM.MAX_EPOCH"]
        values = {str(run.overrides.get(key)) for run in concerned}
        if len(values) == 1 and key in concerned[0].overrides:
            common += [key, *values]
    return common
