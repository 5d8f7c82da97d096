"""A method in one file outside the tree, with --import and no other edit; and files that are no methods."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.extras.cli import import_method
from experiments import compare, figures, jobs, protocols
from experiments.pictures import words
from experiments.sweep import command
from experiments.tables import __main__ as tables
from experiments.tables.request import Request
from experiments.tables.results import read_runs
from runs.directory import REPOSITORY
from runs.prediction import main as predict_main
from runs.recipes import config_file, recipe
from tests.experiments.test_figures import lines
from tests.experiments.test_main_sh import bash
from tests.experiments.test_tables import commands, grid, show


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The method of docs/adding-a-method.md, word for word; the registry forgets it after the test."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY._objects))
    (text,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/adding-a-method.md").read_text(), re.DOTALL)
    assert text.count("\n") < 60
    (tmp_path / "mine.py").write_text(text)
    return tmp_path / "mine.py"


@pytest.mark.medium  # a process, and four runs in this one
def test_it_goes_wherever_ours_go(
    file: Path,
    tiny: list[str],
    in_process: list[list[str]],
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opts = [word for pair in zip(tiny[::2], tiny[1::2], strict=True) if "BATCH_SIZE" not in pair[0] for word in pair]
    own, there = ["--import", "mine.py"], ["--dataset", "caltech101", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("N", "1")
    done = bash("run.sh", *own, "averaged", "caltech101", "1", *opts)
    assert (done.returncode, done.stderr) == (0, "") and "Averaged on caltech101, 1 shot" in done.stdout
    monkeypatch.delenv("N")
    monkeypatch.setenv("TRAINERS", "coop mine")
    for _ in range(2):
        assert compare.main([*own, "caltech101", "1", *opts]) == 0
        rows = {row[0]: row for row in grid(capsys.readouterr().out)[1:]}
        assert list(rows) == ["CoOp", "averaged prompts"] and rows["averaged prompts"][7] == str(2 * 16 * 64)
    assert protocols.main(["few_shot", *own, "caltech101", "1", *opts]) == 0
    assert "averaged prompts" in capsys.readouterr().out
    assert [argv[:2] == ["--import", str(file)] for argv in in_process] == ["Averaged" in argv for argv in in_process]
    assert len(in_process) == 4  # of both, the seeds 1 and 2

    for path in Path("out").rglob("result.json"):  # so short a training is not the recipe's
        result = json.loads(path.read_text()) | {"epochs": 50}
        del result["overrides"]["OPTIM.MAX_EPOCH"]
        path.write_text(json.dumps(result))
    text = show(capsys, "few-shot", *own, *there, "--shots", "1", "2")
    mean, std = rows["averaged prompts"][1:3]
    assert {row[1]: row[2] for row in grid(text)[1:]}["averaged prompts"] == f"{mean} ± {std}"
    assert any(f" bash scripts/run.sh --import {file} Averaged caltech101 2" in line for line in commands(text)), text
    monkeypatch.setattr(TRAINER_REGISTRY.get("Averaged"), "variants", {"prompts": ("N", (1, 2), 1)})
    text = show(capsys, "prompts", *own, *there, "--shots", "1")
    assert "PLOT, averaged prompts, N (prompts a class)" in text and [row[2] for row in grid(text, 1)] == [
        "N",
        "1",
        "2",
    ]
    assert grid(text, 1)[2][3] == f"{mean} ± {std}"
    request = Request(Path("out"), read_runs(Path("out")), ("caltech101",), (1,))
    assert "averaged prompts" in lines(figures.draw(request).axes[0])

    sweep = [*own, "--trainers", "Averaged", "--datasets", "caltech101", "--shots", "1", "--dry-run", *opts]
    assert command.main(sweep) == 0
    assert re.search(r"^Averaged +2 +2 +0 +0 ", capsys.readouterr().out, re.M)
    run = next(run.path.parent for run in request.found if run.trainer == "Averaged" and run.option("N") == 2)
    picture = next((data_root / "caltech-101/101_ObjectCategories/face").iterdir())
    assert predict_main([*own, "--run", str(run), str(picture)]) == 0
    assert words.main([*own, str(run), "--top", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("%") == 5 and printed.count("prompt ") == 2


def test_its_config(file: Path) -> None:
    """Another method's, the dataset's own among them, or a file beside the method's."""
    import_method(str(file))
    assert recipe("Averaged", "dtd", 1) == ("../CoOp/rn50", "OPTIM.MAX_EPOCH 50")
    assert recipe("Averaged", "symbols_layout", 1) == ("../CoOp/symbols", "OPTIM.MAX_EPOCH 50")
    assert config_file("Averaged", "../CoOp/symbols") == REPOSITORY / "configs/trainers/CoOp/symbols.yaml"
    beside = file.read_text().replace("class Averaged", "class Beside").replace("../CoOp/{b", "mine/{b")
    file.with_name("beside.py").write_text(beside.replace('backbone}"', 'backbone}.yaml"'))
    import_method(str(file.with_name("beside.py")))
    config, _ = recipe("Beside", "dtd", 1, backbone="vit_b16")
    assert config_file("Beside", config) == file.parent / "mine/vit_b16.yaml"
    assert recipe("Beside", "dtd", 1, cfg="other")[0] == str(file.parent / "mine/other")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class (", r"wrong.py': SyntaxError: .*line 1"),
        ("\nimport nowhere", r"wrong.py', line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("x = 1", "wrong.py': it registers no trainer"),
    ],
)
def test_a_file_that_is_no_method(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.py").write_text(text)
    for program in (train.main, jobs.main, tables.main):
        assert program(["--import", str(tmp_path / "wrong.py")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and re.search(says, error), error
