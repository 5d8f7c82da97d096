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


@dataclass(frozen=True)
class Spec:
    """All combinations of four lists, with the KEY VALUE pairs of each run, and the absolute folders OUT and DATA.

    ``table`` is the name of the table's files: another for other options.
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


def spec_of(args: argparse.Namespace) -> Spec:
    """Raises UserError: a file that is not a sweep, an unknown method, a number that is not positive."""
    asked = read_file(Path(args.file)) if args.file else {}
    asked |= {key: getattr(args, key) for key in KEYS[:-1] if getattr(args, key)}
    datasets = list(dict.fromkeys(asked.get("datasets", "").replace(",", " ").split()))
    if not datasets:
        raise UserError("no datasets: name them with --datasets, or a sweep with --file; see python sweep.py --help")
    environment = replace(args.environment, TRAINERS="", TARGETS="")  # flags say them
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


def read_file(path: Path) -> dict[str, Any]:
    """A sweep file's lists as the flags spell them ("1 2 4"), and its options as KEY VALUE pairs."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no sweep's file at '{path}'; those that come with us are in configs/sweeps/") from None
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"'{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' is no sweep: it should be a mapping with the keys {', '.join(KEYS)}")
    asked: dict[str, Any] = {}
    for key, value in loaded.items():
        if key not in KEYS:
            nearest = difflib.get_close_matches(str(key).lower(), KEYS, n=1, cutoff=0)[0]
            raise UserError(f"'{path}': '{key}' is none of {', '.join(KEYS)}; the nearest is '{nearest}'")
        if key == "options":
            if not isinstance(value, Mapping):
                raise UserError(f"'{path}': 'options' should be a mapping of keys to values, not {value!r}")
            asked[key] = [str(word) for pair in value.items() for word in pair]
        elif isinstance(value, Mapping) or value is None:
            raise UserError(f"'{path}': '{key}' should be a list, not {value!r}")
        else:
            asked[key] = " ".join(map(str, value if isinstance(value, list) else [value]))
    return asked
