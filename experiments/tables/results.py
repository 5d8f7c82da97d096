"""Finished runs as the tables see them: read from ``result.json`` files, sorted into cells, refused if mixed."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dassl.utils import UserError
from experiments.recipes import prescribed_epochs
from runs.recipes import BACKBONES, method_of, prefix_of, recipe
from runs.result import hash_of_checkpoints, load_result

from . import significance

# Overrides that a table allows: the backbone, of which a table has one, and what changes nothing that a table shows.
LIST = "DATASET.FEW_SHOT_LIST"
BACKBONE = ("INPUT.SIZE", "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.ALLOW_TORCHSCRIPT")
ALLOWED = {*BACKBONE, "DATALOADER.TEST.BATCH_SIZE", "DATASET.SUBSAMPLE_CLASSES", "TRAIN.CHECKPOINT_FREQ", LIST}

AS_PUBLISHED = "AS_PUBLISHED"  # the option of a method whose published code leaks: run it so


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, or the test of one (``trained``) on other data.

    Attributes:
        path: of its result.json.
        dataset, accuracy, backbone: as tested; the others as trained.
        backbone: the weights' hash, else the name.
    """

    path: Path
    result: dict[str, Any]
    trained: FinishedRun | None
    dataset: str
    accuracy: float
    backbone: str
    backbone_name: str
    trainer: str
    seed: int
    shots: int
    epochs: int
    overrides: dict[str, Any]

    @property
    def source(self) -> FinishedRun:
        """The run that learned the prompt."""
        return self.trained or self

    @property
    def prescribed(self) -> int:
        """The recipe's epochs."""
        config = self.source.result.get("config") or ""
        return prescribed_epochs(self.trainer, self.source.dataset, self.shots, config)

    @property
    def peculiarity(self) -> str:
        """How the run differs from the recipe's."""
        words = [f"{k.rpartition('.')[2]} {v}" for k, v in self.overrides.items() if k not in ALLOWED]
        words += [] if of_recipe(self) else [f"config {self.result.get('config')}"]
        if not words and self.epochs != self.prescribed:
            words = [f"{self.epochs} epochs"]
        return ", ".join(words) or ", ".join(f"{k} {v}" for k, v in self.overrides.items()) or "once more"

    def option(self, key: str, default: Any = None) -> Any:
        """One of the method's options, as tested."""
        return (self.result.get("options") or {}).get(key, default)

    @property
    def flag(self) -> str:
        """Why its figure is no clean one; "" if it is."""
        source = self.source
        if source.result.get("test_selected"):
            return "chosen on the test set"
        return "run as its published code does (AS_PUBLISHED)" if source.option(AS_PUBLISHED) else ""

    def predictions(self) -> dict[str, tuple[int, int]] | None:
        """{image: (label, prediction)}; None if the run has kept none.

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


def finished(directory: Path, trained: FinishedRun | None = None) -> FinishedRun:
    """Reads the result.json in a directory. UserError: it is damaged."""
    path = directory / "result.json"
    result = load_result(path)
    source = trained.result if trained else result
    name = str(result["backbone"].get("name"))
    return FinishedRun(
        path=path,
        result=result,
        trained=trained,
        dataset=result["dataset"],
        accuracy=float(result["accuracy"]),
        backbone=result["backbone"].get("sha256") or name,
        backbone_name=name,
        **{key: source[key] for key in ("trainer", "seed", "shots", "epochs")},
        overrides=source.get("overrides") or {},
    )


def read_runs(out: Path) -> list[FinishedRun]:
    """The finished runs under a folder, then the tests of those whose checkpoints are still the same.

    Raises:
        UserError: a result.json is damaged.
    """
    folders = [path.parent for path in sorted(out.rglob("result.json"))]
    runs = {folder: finished(folder) for folder in folders if folder.parent.name != "eval"}
    evals = [folder for folder in folders if folder not in runs and folder.parents[1] in runs]
    tests = [finished(folder, runs[folder.parents[1]]) for folder in evals]
    fresh = [test for test in tests if test.result.get("tested") in (None, hash_of_checkpoints(test.path.parents[2]))]
    return [*runs.values(), *fresh]


@dataclass(frozen=True)
class Cell:
    """The runs behind one number: one a seed."""

    runs: tuple[FinishedRun, ...] = ()

    @property
    def by_seed(self) -> dict[int, float]:
        """Accuracy by seed; with --mixed the mean of a seed's runs."""
        seeds: dict[int, list[float]] = {}
        for run in self.runs:
            seeds.setdefault(run.seed, []).append(run.accuracy)
        return {seed: sum(values) / len(values) for seed, values in sorted(seeds.items())}

    @property
    def flag(self) -> str:
        return next((run.flag for run in self.runs if run.flag), "")

    @property
    def mean(self) -> float | None:
        return significance.mean(list(self.by_seed.values()))

    @property
    def std(self) -> float | None:
        return significance.deviation(list(self.by_seed.values()))


def differences(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> list[float]:
    """Ours minus theirs, for the keys that both have."""
    return [ours[key] - theirs[key] for key in ours if key in theirs]


def select(
    candidates: Iterable[FinishedRun], trainer: str, dataset: str, shots: int, part: str = "all", **options: Any
) -> Cell:
    """The runs of a cell: as the recipe has them, but for the options and, where a seed has no other run, for ALLOWED.

    Args:
        part: of the classes, as tested: all, base or new. What learns has learned on all, or on base.
        options: values of the method's own options; those in its ``variants`` have their defaults otherwise.
    """
    method = method_of(trainer)
    shots = shots if method.has_seeds else 0
    varied = {variant[0] for variant in method.variants.values()}
    defaults = {option.key: option.default for option in method.options}
    wanted = {key: value for key, value in defaults.items() if key in varied} | options
    allowed = ALLOWED | {f"TRAINER.{method.node}.{key}" for key in options}
    chosen = [
        run
        for run in candidates
        if (run.trainer, run.dataset, run.shots) == (trainer, dataset, shots)
        and _part(run) == part
        and _part(run.source) == ("base" if part != "all" and run.trained else part)
        and {*run.overrides, *(run.result.get("overrides") or ())} <= allowed
        and all(run.option(key, defaults.get(key)) == value for key, value in wanted.items())
        and of_recipe(run)
        and run.epochs in (0, run.prescribed)
    ]
    plain = {run.seed for run in chosen if not run.overrides.keys() & ALLOWED - {*BACKBONE}}
    return Cell(tuple(r for r in chosen if r.seed not in plain or not r.overrides.keys() & ALLOWED - {*BACKBONE}))


def _part(run: FinishedRun) -> str:
    return run.result.get("subsample_classes") or "all"


def of_recipe(run: FinishedRun) -> bool:
    """Whether a run's config is the recipe's, on any backbone and for any epochs."""
    prescribed = PurePath(recipe(run.trainer, run.source.dataset, run.shots)[0]).name
    return _family(run.source.result.get("config") or prescribed) == _family(prescribed)


def _family(config: str) -> str:
    """A config's name without its backbone and epochs: rn101_ep50 and vit_b16 are CoOp's same config."""
    return re.sub(r"_ep\d+(?=$|_ctx)", "", re.sub(rf"^({'|'.join(BACKBONES)})(?=_|$)", "", config))


def of_backbone(found: Sequence[FinishedRun], backbone: str) -> list[FinishedRun]:
    """The runs on one backbone, by its name, its config's name or the start of its weights' hash."""
    name = BACKBONES.get(prefix_of(backbone), backbone)
    return [run for run in found if run.backbone_name == name or run.backbone.startswith(name)]


def check_unmixed(used: Sequence[FinishedRun], mixed: bool, epochs: bool = True) -> list[str]:
    """Notes on what is mixed, for a table that was asked for so.

    Args:
        epochs: compares the epochs too.

    Raises:
        UserError: the runs differ in backbone, epochs or, at one seed, few-shot set, and ``mixed`` is off.
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
    other = [run for run in learned if run.epochs != run.prescribed]
    if epochs and other and len({run.epochs for run in learned}) > 1:
        problems.append(
            f"mixed epochs: {len(other)} of {len(learned)} runs have others than the recipe's, such as "
            f"{other[0].epochs} (prescribed: {other[0].prescribed}) in '{other[0].path.parent}'"
        )
    sets: dict[tuple[str, int, int, str], dict[str, FinishedRun]] = {}
    for run in (run.source for run in used if run.source.seed >= 0 and run.source.result.get("split_sha256")):
        place = (run.dataset, run.shots, run.seed, _part(run))
        sets.setdefault(place, {}).setdefault(run.result["split_sha256"], run)
    if differing := next((found for found in sets.values() if len(found) > 1), None):
        named = " and ".join(f"'{run.path.parent}' (split {key[:8]})" for key, run in list(differing.items())[:2])
        problems.append(f"mixed few-shot sets: {named} have other training images for one seed")
    if problems and not mixed:
        raise UserError("; ".join(problems) + "; choose with --backbone or another --out, or allow it with --mixed")
    return problems


def check_unique(cell: Cell, mixed: bool) -> None:
    """Raises UserError if a seed has two runs and ``mixed`` is off."""
    for first, second in itertools.combinations(cell.runs, 2):
        if first.seed == second.seed and not mixed:
            raise UserError(
                f"two runs for one place of the table, '{first.path.parent}' and '{second.path.parent}': move one "
                "away, or take their mean with --mixed"
            )


def discordant(first: FinishedRun, second: FinishedRun) -> tuple[int, int] | None:
    """Images that only the first run has right, and only the second; None unless both kept the same images."""
    a, b = first.predictions(), second.predictions()
    if a is None or b is None or {k: v[0] for k, v in a.items()} != {k: v[0] for k, v in b.items()}:
        return None
    right = [(a[k][0] == a[k][1], b[k][0] == b[k][1]) for k in a]
    return sum(x and not y for x, y in right), sum(y and not x for x, y in right)


def shared_settings(used: Sequence[FinishedRun]) -> list[str]:
    """KEY VALUE pairs on the backbone that the runs of a table have in common, for its commands."""
    common: list[str] = []
    for key in (*BACKBONE, LIST):
        concerned = [run for run in used if run.epochs > 0 or key != LIST]
        values = {str(run.overrides.get(key)) for run in concerned}
        if len(values) == 1 and key in concerned[0].overrides:
            common += [key, *values]
    return common
