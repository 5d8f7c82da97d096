"""What a config key's value must be: functions of a value that return "", or what the value must be instead."""

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

Limit = Callable[[Any], str]


def limit(fits: Callable[[Any], bool], expected: str) -> Limit:
    return lambda value: "" if fits(value) else expected


def at_least(least: float) -> Limit:
    return limit(lambda value: value >= least, f"{least} or more")


def between(least: float, most: float) -> Limit:
    return limit(lambda value: least <= value <= most, f"from {least} to {most}")


def one_of(names: Iterable[str]) -> Limit:
    """A name, or a list of names."""
    known = list(names)

    def expected(values: Any) -> str:
        for name in values if isinstance(values, (list, tuple)) else [values]:
            if name not in known:
                near = get_close_matches(str(name)[:60], known, n=1, cutoff=0.5)
                return f"one of {', '.join(known)}" + (f"; the nearest is '{near[0]}'" if near else "")
        return ""

    return expected


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
