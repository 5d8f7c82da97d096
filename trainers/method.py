"""What a method says of itself: its options, its papers' recipe, and its facts for tables and figures.

A method is one file. Its trainer class derives from ``Method``, sets the attributes below and registers itself; nothing
outside the file names it. Configs, recipes, comparisons, tables, figures, sweeps and benchmarks ask ``methods()``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .clip.prompts import UserError


class Option(NamedTuple):
    """A key of the method's config node; a number is from ``least`` to ``most``, a name one of ``choices``."""

    key: str
    default: object
    help: str
    least: float | None = None
    most: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What a value must be; "" if it may be any of its type."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.least is None:
            return ""
        return f"{self.least} or more" if self.most == math.inf else f"from {self.least} to {self.most}"

    def fault(self, value: Any) -> str:
        """What the value must be; "" if it is that."""
        fits = value in self.choices if self.choices else self.least is None or self.least <= value <= self.most
        return "" if fits else self.expected


class Recipe(NamedTuple):
    """A config file, and the KEY VALUE pairs over it.

    Attributes:
        config: its path below configs/trainers/<the method's name>/, without ".yaml"; "../CoOp/{backbone}" is another
            method's. If it ends in ".yaml", it is relative to the folder of the method's own file. ``{backbone}``
            stands for BACKBONE, else ``Method.backbone``. A config named after the dataset (`symbols`, also for
            `symbols_layout`) replaces this one. The options are then ignored, and its _EPOCHS_ {shots at most: epochs}
            sets the epochs. So it is with CFG and such a name (`symbols_vit`), and with a config whose _DATASETS_
            {dataset: values, with _EPOCHS_} has the dataset (`photo`).
        options: the pairs.
    """

    config: str
    options: Mapping[str, object] = {}


class Method:
    """The attributes of a method's trainer class.

    Attributes:
        node: the name of its config node under TRAINER; "" for a method without options.
        options: the node's keys.
        label: its name in tables; by default the registered one.
        paper: title, venue and arXiv number. Tables list the methods in the order of these numbers.
        learns: whether training changes anything.
        has_seeds: whether its runs differ by seed and shots.
        other_classes: whether what it has learned serves other classes than those it was trained on.
        learns_images: whether a learned parameter reaches the image features. For tables; the engine finds it out.
        backbone: the part of a config's name that its paper's configs begin with.
        colour, marker: of its curve in figures. Without a colour it has none, and is compared only where it is named.
        role: "subject": tested against every other method. "baseline": comparisons show the difference to it.
            "adapter", "base-to-new": listed in that table.
        compared: whether commands that name no method take it, if it has a colour.
        needs: {option: method}. The option names a finished run of that method on the same dataset, shots, seed and
            backbone, by its path in OUT; commands run it first.
        variants: {table: (option, values, base value)} of the tables that compare the method with itself.
        ablation: {row: option values} of the table that takes the method's parts away.
        transfer: option values of a run that is trained to be tested on shifted sets.
        transfer_as_published: option values of a second test of that run, as the published code makes it.
    """

    node: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()
    label: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    learns: ClassVar[bool] = True
    has_seeds: ClassVar[bool] = True
    other_classes: ClassVar[bool] = True
    learns_images: ClassVar[bool] = False
    backbone: ClassVar[str] = "rn50"
    colour: ClassVar[str] = ""
    marker: ClassVar[str] = "o"
    role: ClassVar[str] = ""
    compared: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {}
    variants: ClassVar[Mapping[str, tuple[str, tuple[object, ...], object]]] = {}
    ablation: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    transfer: ClassVar[Mapping[str, object]] = {}
    transfer_as_published: ClassVar[Mapping[str, object]] = {}

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """What the paper prescribes for a dataset, by its config's name, and a number of shots."""
        return Recipe("{backbone}")

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        """What is wrong with the method's options, a line each."""
        values = cfg.TRAINER[cls.node] if cls.node else {}
        found = ((option.key, values[option.key], option.fault(values[option.key])) for option in cls.options)
        return [f"TRAINER.{cls.node}.{key} is {value!r}; it must be {fault}" for key, value, fault in found if fault]


def methods() -> dict[str, type[Method]]:
    """The registered methods by name, in the order of their papers."""
    registered = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    found = {name: kind for name, kind in registered.items() if isinstance(kind, type) and issubclass(kind, Method)}
    return dict(sorted(found.items(), key=lambda item: _arxiv(item[1].paper)))


def _arxiv(paper: str) -> str:
    match = re.search(r"\d{4}\.\d{5}", paper)
    return match[0] if match else "9"


def add_options(cfg: CfgNode) -> None:
    """Adds the options of every registered method to its node. Methods may share a node.

    Raises:
        UserError: they give an option different defaults, or a node or an option is none that a config can hold.
    """
    given: dict[tuple[str, str], tuple[object, str]] = {}
    for kind in methods().values():
        for option in kind.options if kind.node else ():
            default, other = given.setdefault((kind.node, option.key), (option.default, kind.__name__))
            where = f"TRAINER.{kind.node}.{option.key}"
            if default != option.default:
                both = f"{default!r} in {other} and {option.default!r} in {kind.__name__}"
                raise UserError(f"{where} is {both}; give one its own node")
            try:
                cfg.TRAINER.setdefault(kind.node, CfgNode()).setdefault(option.key, option.default)
            except (AttributeError, AssertionError, KeyError) as error:
                raise UserError(f"{kind.__name__} cannot have the option {where}: {error}") from error


def method_cfg(cfg: CfgNode, node: str) -> CfgNode:
    """The node of the config's trainer, which may be a variant with a node of its own; else ``node``."""
    kind = methods().get(cfg.TRAINER.NAME)
    return cfg.TRAINER[kind.node if kind and kind.node else node]


def epochs_by_shots(dataset: str, shots: int) -> int:
    """Epochs of CoOp's published training, which PLOT's follows (arXiv 2109.01134, section 4.1)."""
    if dataset == "imagenet" or shots <= 1:
        return 50
    return 100 if shots <= 4 else 200
