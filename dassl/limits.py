"""What a config key's value must be: functions of a value that return "", or what the value must be instead.

Their ``expected`` says it in the list of keys (``docs/reference.py``).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Limit:
    fits: Callable[[Any], bool]
    expected: str

    def __call__(self, value: Any) -> str:
        return "" if self.fits(value) else self.expected


limit = Limit
ANY = limit(lambda value: True, "")


def at_least(least: float) -> Limit:
    return limit(lambda value: value >= least, f"{least} or more")


def between(least: float, most: float) -> Limit:
    return limit(lambda value: least <= value <= most, f"from {least} to {most}")


class OneOf(Limit):
    """A name, or a list of names, out of those that ``fits`` knows; the nearest is said."""

    def __call__(self, values: Any) -> str:
        for name in values if isinstance(values, (list, tuple)) else [values]:
            if not self.fits(name):
                known = self.expected.removeprefix("one of ").split(", ")
                near = get_close_matches(str(name)[:60], known, n=1, cutoff=0.5)
                return self.expected + (f"; the nearest is '{near[0]}'" if near else "")
        return ""


def one_of(names: Iterable[str]) -> Limit:
    known = list(names)
    return OneOf(lambda name: name in known, f"one of {', '.join(known)}")


def list_of(kind: type, expected: str, fits: Callable[[Any], bool] = lambda values: True) -> Limit:
    """A list or tuple of finite values of one type; integers are floats too."""
    kinds = (int, float) if kind is float else (kind,)

    def of_kind(values: Any) -> bool:
        return isinstance(values, (list, tuple)) and all(type(value) in kinds and finite(value) for value in values)

    return limit(lambda values: of_kind(values) and fits(values), expected)


def finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


POSITIVE = limit(lambda value: value > 0, "positive")
BELOW_ONE = limit(lambda value: 0 <= value < 1, "from 0 to under 1")
NAMES = list_of(str, "a list of names")
