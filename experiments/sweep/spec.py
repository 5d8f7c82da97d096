"""What a sweep consists of, from the command line, a YAML file, or both; flags win over the file."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dassl.extras.cli import Environment
from dassl.utils import UserError
from experiments.jobs import positive_integers, shots_of
from experiments.recipes import named_methods
from experiments.tables.render import name_of
from experiments.tables.suite import SHOTS
from runs.directory import shorten

KEYS = ("trainers", "datasets", "shots", "seeds", "options")
IN_FILE = (*KEYS, "config", "variants")


@dataclass(frozen=True)
class Spec:
    """All combinations of four lists, with the KEY VALUE pairs of each run, and the absolute folders OUT and DATA.

    ``table`` is the name of the table's files: another for other options. ``variants`` are further runs, in no table.
    """

    name: str
    table: str
    trainers: list[str]
    datasets: list[str]
    shots: list[int]
    seeds: list[int]
    opts: list[str]
    environment: Environment
    out: Path
    data: Path
    variants: tuple[Spec, ...] = ()


def spec_of(args: argparse.Namespace) -> Spec:
    """Flags win over the file. Of its variants they leave what is in both.

    Raises:
        UserError: a file that is not a sweep, an unknown method, a number that is not positive.
    """
    first, *others = read_file(Path(args.file)) if args.file else [{}]
    flags = {key: getattr(args, key) for key in KEYS[:-1] if getattr(args, key)}
    spec = _spec(args, first | flags)
    seeds = {"seeds": args.seeds} if args.seeds else {}
    variants = [_within(_spec(args, each | seeds), spec, flags.keys() - seeds) for each in others]
    return replace(spec, variants=tuple(each for each in variants if each.trainers and each.datasets and each.shots))


def _within(variant: Spec, spec: Spec, keys: set[str]) -> Spec:
    """The variant with what of these lists is in the spec's too."""
    both: dict[str, Any] = {key: [each for each in getattr(variant, key) if each in getattr(spec, key)] for key in keys}
    return replace(variant, **both)


def _spec(args: argparse.Namespace, asked: dict[str, Any]) -> Spec:
    datasets = list(dict.fromkeys(asked.get("datasets", "").replace(",", " ").split()))
    if not datasets:
        raise UserError("no datasets: name them with --datasets, or a sweep with --file; see python sweep.py --help")
    environment = replace(args.environment, TRAINERS="", TARGETS="")  # flags say them
    if not (environment.CFG or environment.BACKBONE):
        environment = replace(environment, CFG=asked.get("config", ""))
    name = Path(args.file).stem if args.file else shorten("_".join(datasets))
    flags = KEYS[:-1] if args.file else ("trainers", "shots", "seeds")
    given = [f"{key}{'-'.join(getattr(args, key).replace(',', ' ').split())}" for key in flags if getattr(args, key)]
    return Spec(
        name=name,
        table=name_of("_".join(["sweep", name, *given]), environment, args.opts),
        trainers=named_methods(asked.get("trainers", "")),
        datasets=datasets,
        shots=shots_of(asked.get("shots", " ".join(map(str, SHOTS))), "--shots"),
        seeds=positive_integers(asked.get("seeds") or environment.SEEDS, "--seeds"),
        opts=[*asked.get("options", []), *args.opts],
        environment=environment,
        out=Path(environment.OUT).absolute(),
        data=Path(environment.DATA).expanduser().absolute(),
    )


def read_file(path: Path) -> list[dict[str, Any]]:
    """A sweep file's lists as the flags spell them ("1 2 4"), and its options as KEY VALUE pairs.

    First the file itself, then its variants: one for each of their options, where these are a list. Where a variant
    leaves out a key it has the file's own, and its options come on top of the file's.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no sweep's file at '{path}'; those that come with us are in configs/sweeps/") from None
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"'{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' is no sweep: it should be a mapping with the keys {', '.join(IN_FILE)}")
    variants = loaded.pop("variants", None) or []
    if not isinstance(variants, list) or not all(isinstance(each, dict) for each in variants):
        raise UserError(f"'{path}': 'variants' should be a list of mappings with the keys {', '.join(KEYS)}")
    found = [_asked(loaded, path, IN_FILE)]
    for variant in variants:
        options = variant.get("options", {})
        for each in options if isinstance(options, list) else [options]:
            asked = _asked({**variant, "options": each}, path, KEYS)
            found.append({**found[0], **asked, "options": [*found[0].get("options", []), *asked["options"]]})
    return found


def _asked(given: Mapping[Any, Any], path: Path, known: tuple[str, ...]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0)[0]
            raise UserError(f"'{path}': '{key}' is none of {', '.join(known)}; the nearest is '{nearest}'")
        if key == "options":
            if not isinstance(value, Mapping):
                raise UserError(f"'{path}': 'options' should be a mapping of keys to values, not {value!r}")
            asked[key] = [str(word) for pair in value.items() for word in pair]
        elif isinstance(value, Mapping) or value is None:
            raise UserError(f"'{path}': '{key}' should be a list, not {value!r}")
        else:
            asked[key] = " ".join(map(str, value if isinstance(value, list) else [value]))
    return asked
