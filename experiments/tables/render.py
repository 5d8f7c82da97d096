"""A table as Markdown, CSV and LaTeX: sections with rows of text for readers, records in long form for the CSV.

Files have each table whole. A terminal has it in parts, none wider than WIDTH.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tabulate import LATEX_ESCAPE_RULES, tabulate

from dassl.extras.cli import Environment
from dassl.utils import write_atomically
from runs.directory import shorten, spell

DASH = "–"
WIDTH = 100  # characters of a row in a terminal
PAGE = 100  # characters of a row of LaTeX that fits on a page
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# The signs here for which tabulate has no LaTeX.
_SIGNS = {"±": r"$\pm$", "–": "--", "|": r"\textbar{}"}
_SIGNS |= {sign: f"$^{digit}$" for digit, sign in zip("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Blank for None."""
    if value is None:
        return ""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    zero = f"{0:.{digits}f}"
    return zero if text.lstrip("+-") == zero else text


def mean_std(mean: float | None, std: float | None, signed: bool = False) -> str:
    return number(mean, signed=signed) + ("" if std is None else f" ± {number(std)}")


def interval(mean: float, half: float) -> str:
    """Of an accuracy in percent: no end is below 0 or above 100."""
    return f"{max(0.0, mean - half):.2f} to {min(100.0, mean + half):.2f}"


def probability(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass
class Section:
    """A caption and, under headers, rows of text.

    Attributes:
        keys: the number of first columns that say what a row is of.
        group: the number of further columns that stay side by side.
    """

    caption: str
    headers: list[str]
    rows: list[list[str]]
    keys: int = 1
    group: int = 1

    def render(self, form: str) -> str:
        return tabulate(self.rows, headers=self.headers, tablefmt=form, disable_numparse=True, stralign="left")

    def parts(self) -> list[str]:
        """Markdown tables of at most WIDTH, each with the key columns."""
        n = len(self.headers)
        found: list[str] = []
        shown: list[int] = []
        for i in range(self.keys, n, self.group):
            group = range(i, min(i + self.group, n))
            text = self._columns([*shown, *group])
            if shown and len(text.partition("\n")[0]) > WIDTH:
                shown, text = [], self._columns([*group])
            else:
                found = found[:-1]
            shown += group
            found.append(text)
        return found

    def _columns(self, chosen: list[int]) -> str:
        rows = [[row[i] for i in (*range(self.keys), *chosen)] for row in (self.headers, *self.rows)]
        return Section("", rows[0], rows[1:]).render("github")


@dataclass
class Table:
    """A table, its notes, and the commands of its cells.

    Attributes:
        records: the numbers behind the rows, one mapping a line of the CSV.
        missing: the commands that fill them.
        made: the commands that made the runs of the others.
    """

    name: str
    title: str
    sections: list[Section] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)

    def mark(self, why: str) -> str:
        """The number of a footnote that says why; "" without a reason."""
        if why and why not in self.footnotes:
            self.footnotes.append(why)
        return str(self.footnotes.index(why) + 1).translate(_SUPERSCRIPT) if why else ""

    def accuracy(self, cell: Any) -> str:
        """Mean and deviation of a ``results.Cell``, marked if it is flagged."""
        return mean_std(cell.mean, cell.std) + self.mark(cell.flag)

    def dash(self, why: str) -> str:
        """A dash with the number of a footnote that says why."""
        return DASH + self.mark(why)

    def p_value(self, p: float | None, why: str) -> str:
        return self.dash(why) if p is None else probability(p)

    def remarks(self) -> list[str]:
        footnotes = [f"{str(i + 1).translate(_SUPERSCRIPT)} {text}." for i, text in enumerate(self.footnotes)]
        return footnotes + self.notes

    def markdown(self) -> str:
        return self._text([[section.render("github")] for section in self.sections])

    def terminal(self) -> str:
        """As Markdown, no table and no remark wider than WIDTH."""
        return self._text([section.parts() for section in self.sections], WIDTH)

    def _text(self, bodies: list[list[str]], width: int = sys.maxsize) -> str:
        parts = [f"# {self.title}"]
        for section, body in zip(self.sections, bodies, strict=True):
            parts += [section.caption] if section.caption else []
            parts += body
        parts += [textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) for text in self.remarks()]
        if self.missing:
            commands = "\n".join(self.missing)
            parts.append(f"Blank cells, and the commands that fill them:\n\n```bash\n{commands}\n```")
        return "\n\n".join(parts) + "\n"

    def _repr_html_(self) -> str:
        """For notebooks."""
        parts = [f"<h4>{escape(self.title)}</h4>"]
        for section in self.sections:
            parts += [f"<p>{escape(section.caption)}</p>"] if section.caption else []
            parts.append(section.render("html"))
        commands = "\n".join(self.missing)
        parts += [f"<p>{escape(text)}</p>" for text in self.remarks()]
        return "\n".join([*parts, *([f"<pre>{escape(commands)}</pre>"] if commands else [])])

    def csv(self) -> str:
        keys = list(dict.fromkeys(key for record in self.records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, keys, lineterminator="\n")  # None becomes an empty field
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()

    def latex(self) -> str:
        """A ``table`` a section, for the packages booktabs and graphicx; one wider than a page is scaled to it."""
        parts = []
        for section in self.sections:
            body = section.render("latex_booktabs")
            if max(map(len, body.splitlines())) > PAGE:
                body = rf"\resizebox{{\textwidth}}{{!}}{{{body}}}"
            caption = rf"\caption{{{_escaped(section.caption or self.title)}}}"
            parts.append("\n".join([r"\begin{table}", r"\centering", body, caption, r"\end{table}"]))
        text = "\n\n".join([*parts, *map(_escaped, self.remarks())]) + "\n"
        text = "".join(_SIGNS.get(sign, sign) for sign in text)
        return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)  # a minus, not a hyphen

    def show(self, out: Path) -> None:
        """Prints the table, and writes it as OUT/tables/<name>.md, .csv and .tex."""
        print(self.terminal())
        write_files(out, self.name, {"md": self.markdown(), "csv": self.csv(), "tex": self.latex()})


def name_of(stem: str, environment: Environment, opts: Sequence[str] = ()) -> str:
    """A table's file name with the user's options in it, so that tables of other options are other files."""
    words = [f"{key}{spell(value)}" for key, value in zip(opts[::2], opts[1::2], strict=True)]
    for key, usual in vars(Environment()).items():
        value = getattr(environment, key)
        if key not in ("DATA", "OUT", "PLOT_COMMAND") and value != usual:
            words.append(key + spell(re.sub(r"[\s,]+", "-", value.strip())))
    return shorten("_".join([stem, *words]))


def write_files(out: Path, name: str, contents: Mapping[str, Any]) -> None:
    """Writes OUT/tables/<name>.<ending> by ending. A mistyped OUT, in a folder that does not exist, is not made."""
    if not (out.is_dir() or out.parent.is_dir()):
        print(f"Not written: there is no folder '{out.parent}' to make '{out.name}' in")
        return
    paths = {out / "tables" / f"{name}.{ending}": content for ending, content in contents.items()}
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for path, content in paths.items():
        write_atomically(path, content)
    print("Written: " + ", ".join(map(str, paths)))


def _escaped(text: str) -> str:
    return "".join(LATEX_ESCAPE_RULES.get(sign, sign) for sign in text)
