"""The documents: links lead somewhere, commands parse, the reference is whole, the notebook runs, the site builds."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dassl.config import flatten
from docs import reference
from runs.directory import REPOSITORY, defaults
from trainers.method import methods

DOCUMENTS = sorted(REPOSITORY.glob("*.md")) + sorted(REPOSITORY.glob("docs/*.md"))
WITHOUT_PARSER = ("pytest", "tests.", "benchmarks.", "experiments.pretrain", "docs.", "venv", "pip", "scripts.X")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text)
    for link in filter(lambda link: "://" not in link, map("".join, links)):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def commands(text: str) -> Iterator[list[str]]:
    """The words of each python or bash command in the code of a document, without its variables, pipes and comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:[A-Z_]+=\S+ )*(?:python|bash) [^`]+)`", text)
    for line in lines:
        for part in re.split(r"; (?:do )?|<|>|\s\|\s", line):
            if not re.match(r'\s*([A-Z_]+=("[^"]*"|\S*)\s+)*(python|bash) ', part):
                continue
            words = shlex.split(part.replace("\\|", "|"), comments=True)
            yield words[next(i for i, word in enumerate(words) if word in ("python", "bash")) :]


def program(words: list[str]) -> tuple[str, list[str]]:
    """The module that reads a command's arguments, and they; "" where it has no parser of ours."""
    if words[0] == "bash":
        script = Path(words[1])
        assert (REPOSITORY / script).is_file(), script
        if script.parts[:2] == ("scripts", "protocols") and script.stem not in ("paper", "photographs"):
            return "experiments.protocols", [script.stem, *words[2:]]
        if script.stem == "main":
            return "experiments.jobs", [script.parent.name, *words[2:]]
        return {"run": "experiments.jobs", "compare": "experiments.compare"}.get(script.stem, ""), words[2:]
    if words[1] == "-m":
        module = words[2].replace("dassl.features", "dassl.extras.features.__main__")
        if module.startswith(WITHOUT_PARSER):
            ours = (REPOSITORY / module.replace(".", "/")).with_suffix(".py").is_file()
            assert ours or module in ("pytest", "venv", "pip", "scripts.X"), module
            return "", []
        return module, words[3:]
    assert (REPOSITORY / words[1]).is_file(), words
    return words[1].removesuffix(".py"), words[2:]


def test_commands_are_found() -> None:
    block = "OUT=x bash scripts/run.sh plot symbols 1  # why\nfor n in 1 2; do python a.py $n | sort; done\n"
    found = [*commands(f"```bash\n{block}```\n`python b.py`")]
    assert found == [["bash", "scripts/run.sh", "plot", "symbols", "1"], ["python", "a.py", "$n"], ["python", "b.py"]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dassl.extras.cli.import_method", lambda file: None)  # my_method.py
    known = dict(flatten(defaults()))
    for words in commands(path.read_text(encoding="utf-8")):
        module, arguments = program(words)
        if not module or "..." in " ".join(arguments):  # [KEY VALUE]...
            continue
        parsed = reference.parser_of(module).parse_args(arguments)
        pairs = getattr(parsed, "opts", None) or getattr(parsed, "rest", [])
        for key in (word for word in pairs if re.fullmatch(r"[A-Z_]+(\.[A-Z_]+)+", word)):
            assert key in known, (words, key)


def test_the_reference_has_every_command_key_and_option() -> None:
    """The site is filled in from these texts as it is built, so it cannot be out of date."""
    texts = {name: part() for name, part in reference.PARTS.items()}
    for key in dict(flatten(defaults())):
        section, _, rest = key.partition(".")
        own = section == "TRAINER" and "." in rest
        assert f"`{key.rpartition('.')[2] if own else key}`" in texts["options" if own else "keys"], key
    assert all(f"### TRAINER.{kind.node}" in texts["options"] for kind in methods().values() if kind.options)
    for flag in ("--model-dir", "--quiet", "--classes", "--engine", "--check", "--max-gb", "--mixed"):
        assert f"`{flag}" in texts["commands"], flag
    assert "from 0 to 1" in texts["keys"] and "one of ot, uniform" in texts["options"]
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert set(re.findall(r"<!-- filled in: (\w+) -->", pages)) == set(texts)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From start to end in under five minutes on two cores."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    book = nbformat.read(REPOSITORY / "docs/quickstart.ipynb", as_version=4)
    done = nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": REPOSITORY}}).execute()
    outputs = json.dumps([cell.get("outputs") for cell in done.cells])
    assert "Result(directory=" in outputs and "image/png" in outputs and "zero-shot CLIP" in outputs


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "docs/commands.html").read_text(encoding="utf-8")
    assert "--model-dir" in page and (tmp_path / "index.html").is_file()
