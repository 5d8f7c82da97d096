"""A table as Markdown, CSV and LaTeX: sections with rows of text for the eye, records in long form for the CSV."""

from __future__ import annotations

import csv
import io
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dassl.utils import write_atomically

DASH = "–"
PAGE = 80  # characters a line of LaTeX's page
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = {sign: digit for digit, sign in zip("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    **{sign: f"$^{digit}$" for sign, digit in _PLAIN.items()},
}


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Blank for None."""
    if value is None:
        return ""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    zero = f"{0:.{digits}f}"
    return zero if text.lstrip("+-") == zero else text


def mean_std(mean: float | None, std: float | None, signed: bool = False) -> str:
    return number(mean, signed=signed) + ("" if std is None else f" ± {number(std)}")


def probability(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass
class Section:
    """A caption and, under headers, rows of text."""

    caption: str
    headers: list[str]
    rows: list[list[str]]


@dataclass
class Table:
    """``records`` are the numbers behind the rows, one mapping a number's place; ``missing`` the commands that would
    fill what is blank."""

    name: str
    title: str
    sections: list[Section] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)

    def dash(self, why: str) -> str:
        """A dash with the number of a footnote that says why."""
        if why not in self.footnotes:
            self.footnotes.append(why)
        return DASH + str(self.footnotes.index(why) + 1).translate(_SUPERSCRIPT)

    def p_value(self, p: float | None, why: str) -> str:
        return self.dash(why) if p is None else probability(p)

    def markdown(self) -> str:
        parts = [f"# {self.title}"]
        for section in self.sections:
            body = tabulate(
                section.rows, headers=section.headers, tablefmt="github", disable_numparse=True, stralign="left"
            )
            parts.append(f"{section.caption}\n\n{body}" if section.caption else body)
        parts += [f"{str(i + 1).translate(_SUPERSCRIPT)} {text}." for i, text in enumerate(self.footnotes)]
        parts += self.notes
        if self.missing:
            commands = "\n".join(self.missing)
            parts.append(f"Blank cells, and the commands that fill them:\n\n```bash\n{commands}\n```")
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        keys = list(dict.fromkeys(key for record in self.records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in record.items()} for record in self.records)
        return text.getvalue()

    def latex(self) -> str:
        """A ``table`` a section, for the packages booktabs and graphicx: one wider than a page is made as wide."""
        parts = []
        for section in self.sections:
            rule = "l" * len(section.headers)
            columns = itertools.zip_longest(section.headers, *section.rows, fillvalue="")
            wide = sum(2 + max(map(len, column)) for column in columns) > PAGE
            lines = [
                *(r"\begin{table}", r"\centering"),
                (r"\resizebox{\textwidth}{!}{" if wide else "") + rf"\begin{{tabular}}{{{rule}}}",
                *(r"\toprule", _latex_row(section.headers), r"\midrule"),
                *(*map(_latex_row, section.rows), r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")),
                *(rf"\caption{{{_latex(section.caption or self.title)}}}", r"\end{table}"),
            ]
            parts.append("\n".join(lines))
        footnotes = [f"{str(i + 1).translate(_SUPERSCRIPT)} {text}." for i, text in enumerate(self.footnotes)]
        parts += [_latex(text) for text in (*footnotes, *self.notes)]
        return "\n\n".join(parts) + "\n"

    def write(self, out: Path) -> list[Path]:
        """OUT/tables/<name>.md, .csv and .tex."""
        paths = [out / "tables" / f"{self.name}.{ending}" for ending in ("md", "csv", "tex")]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (self.markdown(), self.csv(), self.latex()), strict=True):
            write_atomically(path, text)
        return paths


def _latex_row(cells: list[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen
