"""Parts of pages that follow from the code: commands and their options, config keys, the notebook.

A page holds the line ``<!-- filled in: NAME -->``; the site shows what ``python -m docs.reference NAME`` prints. NAME
is commands, keys, options or notebook.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Callable
from unittest import mock

import dassl.config
import trainers
from dassl.config import Key, flatten
from dassl.extras.cli import Parser
from runs.directory import REPOSITORY, defaults
from trainers.method import methods

# What is typed -> the module whose main() reads the rest.
PROGRAMS = {
    "python train.py": "train",
    "python predict.py": "predict",
    "python sweep.py": "sweep",
    "bash scripts/run.sh": "experiments.jobs",
    "bash scripts/compare.sh": "experiments.compare",
    "bash scripts/protocols/few_shot.sh": "experiments.protocols",
    **{
        f"python -m {name}": name
        for name in (
            *("experiments.report", "experiments.tables", "experiments.figures", "experiments.pictures.visualize"),
            *("experiments.pictures.words", "experiments.pictures.tsne", "datasets.prepare"),
        )
    },
    "python -m dassl.features": "dassl.extras.features.__main__",
}


class _Captured(Exception):
    """Carries a parser out of a program."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of a program, as its ``main`` makes it before it reads the command line."""

    def captured(parser: argparse.ArgumentParser, *given: object) -> None:
        raise _Captured(parser)

    program = importlib.import_module(module)
    if not hasattr(program, "main"):  # a package, whose __main__ it is
        program = importlib.import_module(f"{module}.__main__")
    with mock.patch.object(Parser, "parse_args", captured):
        try:
            program.main([])
        except _Captured as error:
            return error.args[0]
    raise TypeError(f"{module}.main has no Parser")


def commands() -> str:
    """A section for each program: what it does, its usage, its options."""
    parts = []
    for command, module in PROGRAMS.items():
        parser = parser_of(module)
        summary, _, rest = (parser.description or "").strip().partition("\n\n")
        parts += [f"## {command.removeprefix('python ').removeprefix('bash ')}", summary, _fenced(rest)]
        arguments = [action for action in parser._actions if action.dest != "help"]
        rows = [f"| {_spelled(action)} | {_meaning(parser, action)} |" for action in arguments]
        parts.append("\n".join(["| argument | meaning |", "| --- | --- |", *rows]))
        if parser.epilog:
            lines = (line.split(maxsplit=1) for line in parser.epilog.splitlines()[1:])
            rows = [f"| `{name}` | {_plain(about)} |" for name, about in lines]
            parts.append("\n".join(["| environment | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _fenced(text: str) -> str:
    """A description with its indented commands as code."""
    blocks = []
    for block in filter(None, text.split("\n\n")):
        indented = all(line.startswith("    ") for line in block.splitlines())
        blocks.append(f"```bash\n{inspect.cleandoc(block)}\n```" if indented else _plain(block, cell=False))
    return "\n\n".join(blocks)


def _spelled(action: argparse.Action) -> str:
    values = action.metavar or (action.dest.upper() if action.nargs != 0 and action.option_strings else action.dest)
    value = values if isinstance(values, str) else " ".join(values)
    if action.choices and action.option_strings:
        value = "|".join(map(str, action.choices))
    words = [*action.option_strings[:1], *([value] if action.nargs != 0 else [])]
    return f"`{' '.join(words)}`".replace("|", "\\|")


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    if action.choices and not action.option_strings:
        text = f"{text} One of {', '.join(map(str, action.choices))}.".strip()
    return _plain(text)


def _plain(text: str, cell: bool = True) -> str:
    """Text that Markdown shows as it is, in a cell of a table."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    escaped = "".join(part if part.startswith("`") else re.sub(r"([<>*_~])", r"\\\1", part) for part in parts)
    return escaped.replace("|", "\\|").replace("\n", " ") if cell else escaped


def keys() -> str:
    """The config's keys with type, default, and what values they take; keys of left-out features apart."""
    said, entries = _comments(), dict(flatten(dassl.config.KEYS))
    rows: list[str] = []
    left: list[str] = []
    methods_nodes = {f"TRAINER.{kind.node}" for kind in methods().values()}
    for key, default in flatten(defaults()):
        if key.rpartition(".")[0] in methods_nodes:
            continue
        entry = entries.get(key)
        limit = entry.limit.expected if isinstance(entry, Key) else ""
        if limit.endswith("the only value supported"):
            left.append(f"`{key}`")
            continue
        kind = type(default).__name__
        meaning = "; ".join(filter(None, (said.get(key, ""), limit)))
        rows.append(f"| `{key}` | {kind} | `{_value(default)}` | {_plain(meaning)} |")
    table = "\n".join(["| key | type | default | meaning, and what it may be |", "| --- | --- | --- | --- |", *rows])
    return f"{table}\n\n## Keys of features that are left out\n\nThey accept the default only: {', '.join(left)}.\n"


def _value(value: object) -> str:
    return repr(value).replace("|", "\\|")


def _comments() -> dict[str, str]:
    """The remark behind each key, in dassl/config.py and trainers/__init__.py."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in inspect.getsource(dassl.config).partition("KEYS = {")[2].partition("\n}\n")[0].splitlines():
        if match := re.match(r'( +)"(\w+)": (.*)', line):
            path = [*path[: len(match[1]) // 4 - 1], match[2]]
            if remark := _remark(match[3]):
                found[".".join(path)] = remark
    source = re.sub(r"= \(\s+(.*)\n\s+\)", r"= \1", inspect.getsource(trainers))
    for match in re.finditer(r"cfg\.([A-Z_.0-9]+) = (.*)", source):
        found[match[1]] = _remark(match[2])
    return found


def _remark(code: str) -> str:
    """The comment at the end of a line of Python."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                return token.string.removeprefix("#").strip()
    except (tokenize.TokenError, SyntaxError):
        pass
    return ""


def options() -> str:
    """A table for each method with options of its own."""
    parts: list[str] = []
    shown: set[str] = set()
    for kind in methods().values():
        if not kind.options or kind.node in shown:
            continue
        shown.add(kind.node)
        same = [other for other, its in methods().items() if its.node == kind.node]
        rows = [
            f"| `{option.key}` | {type(option.default).__name__} | `{_value(option.default)}` "
            f"| {_plain('; '.join(filter(None, (option.help, option.expected))))} |"
            for option in kind.options
        ]
        head = [f"### TRAINER.{kind.node}", "", f"Of {', '.join(same)}.", ""]
        parts.append("\n".join([*head, "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def notebook() -> str:
    """docs/quickstart.ipynb as Markdown, without its title."""
    cells = json.loads((REPOSITORY / "docs/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts).partition("\n")[2].strip() + "\n"


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "keys": keys, "options": options, "notebook": notebook}


def fill_in(app: object, docname: str, source: list[str]) -> None:
    """Sphinx's source-read: the pages' marks give way to the parts."""
    source[0] = re.sub(r"<!-- filled in: (\w+) -->", lambda mark: PARTS[mark[1]](), source[0])


if __name__ == "__main__":
    print(PARTS[sys.argv[1]](), end="")
