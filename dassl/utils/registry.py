"""Registries: a class is found by its name, and a misspelt name gets the nearest one in the error."""

from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import Any

from .tools import UserError


def check_availability(requested: str, available: Iterable[str], what: str = "name") -> None:
    """UserError, with the nearest valid name, unless `requested` is in `available`."""
    names = list(available)
    if requested in names:
        return
    if not names:
        raise UserError(f"unknown {what} {requested!r}: none is registered")

    def similarity(name: str) -> float:
        return SequenceMatcher(None, str(requested).lower(), name.lower()).ratio()

    nearest = max(names, key=similarity)
    raise UserError(f"unknown {what} {requested!r}; did you mean {nearest!r}? Available: {', '.join(sorted(names))}")


class Registry:
    """Objects by their `__name__`. `name` says what they are, in errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    def _add(self, obj: Any, force: bool) -> Any:
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(f"a {self._name} called {name!r} is already registered")
        self._objects[name] = obj
        return obj

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """`@REGISTRY.register()` on a class or function, or `REGISTRY.register(obj)`."""
        if obj is not None:
            return self._add(obj, force)
        decorator: Callable[[Any], Any] = lambda obj: self._add(obj, force)  # noqa: E731
        return decorator

    def get(self, name: str) -> Any:
        """UserError: no such name."""
        check_availability(name, self._objects, self._name.lower())
        return self._objects[name]

    def registered_names(self) -> list[str]:
        return list(self._objects)
