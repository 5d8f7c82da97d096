"""Reads the nouns of WordNet 3.0 (Miller, 1995) that name things which can be photographed.

The format of its files is in wndb(5WN). A synset is known by its offset in `data.noun`, as in ImageNet's "n01440764".
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# Lexicographer files (lexnames(5WN)) of the nouns that are read.
KINDS = {5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 20: "plant"}
TAXON = "taxonomic_group"  # a species' genus and family have Latin names; no photograph is called so


@dataclass(frozen=True)
class Synset:
    kind: int
    lemmas: list[str]  # with "_" for spaces
    gloss: str
    parents: list[str]
    instance: bool  # of a class, such as a river or a person


@dataclass(frozen=True)
class WordNet:
    """Synsets by offset, and each lower-case lemma's offsets, the most frequent sense first."""

    synsets: dict[str, Synset]
    senses: dict[str, list[str]]
    _above: dict[str, frozenset[str]] = field(default_factory=dict)

    def above(self, offset: str) -> frozenset[str]:
        """The synset and all its hypernyms."""
        if offset not in self._above:
            parents = self.synsets[offset].parents
            self._above[offset] = frozenset([offset]).union(*(self.above(parent) for parent in parents))
        return self._above[offset]

    @cached_property
    def nouns(self) -> dict[str, list[str]]:
        """{name: offsets of its senses among KINDS, the most frequent first}, without taxa, instances and Latin."""
        (taxon,) = self.senses[TAXON]
        taxa = {offset for offset in self.synsets if taxon in self.above(offset)}
        latin = {lemma for offset in taxa for lemma in self.synsets[offset].lemmas}
        nouns: dict[str, list[str]] = {}
        for offset, synset in self.synsets.items():
            if synset.kind in KINDS and not synset.instance and offset not in taxa:
                for lemma in synset.lemmas:
                    if _is_name(lemma, latin):
                        nouns.setdefault(lemma.replace("_", " ").lower(), []).append(offset)
        for name, offsets in nouns.items():
            offsets.sort(key=self.senses[name.replace(" ", "_")].index)
        return nouns


def _is_name(lemma: str, latin: set[str]) -> bool:
    """Whether a lemma is no binomial, such as "Felis_catus", no abbreviation of one, and has no digits."""
    first, _, rest = lemma.partition("_")
    binomial = first in latin and first[0].isupper() and rest[:1].islower()
    return not binomial and not re.search(r"[A-Z]\._", lemma) and not re.search(r"[^A-Za-z_\-'. ]", lemma)


def _synset(line: str) -> tuple[str, Synset]:
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    after = 4 + 2 * int(fields[3], 16)
    lemmas = fields[4:after:2]
    pointers = [fields[i : i + 4] for i in range(after + 1, after + 1 + 4 * int(fields[after]), 4)]
    parents = [(symbol, offset) for symbol, offset, _, _ in pointers if symbol in ("@", "@i")]
    definition = gloss.split('; "')[0].strip()  # what follows in quotes are examples
    instance = any(symbol == "@i" for symbol, _ in parents)
    return fields[0], Synset(int(fields[1]), lemmas, definition, [offset for _, offset in parents], instance)


def read_wordnet(data: Path, index: Path) -> WordNet:
    """Reads `data.noun` and `index.noun`."""
    lines = [line for line in data.read_text("utf-8").splitlines() if not line.startswith("  ")]
    senses = {}
    for line in index.read_text("utf-8").splitlines():
        if not line.startswith("  "):
            fields = line.split()
            senses[fields[0]] = fields[-int(fields[2]) :]
    return WordNet(dict(map(_synset, lines)), senses)
