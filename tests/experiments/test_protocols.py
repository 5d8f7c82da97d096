"""Base-to-new, cross-dataset, domain generalization: training once, then tests that never train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dassl.engine import TrainerX
from experiments import compare, jobs, protocols
from experiments.recipes import own_options
from tests.experiments.test_main_sh import bash
from tests.experiments.test_tables import grid

pytestmark = pytest.mark.medium


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The output directories of the runs that have trained."""
    directories: list[str] = []
    run_epoch = TrainerX.run_epoch

    def counted(self: Any) -> None:
        directories.append(self.output_dir)
        run_epoch(self)

    monkeypatch.setattr(TrainerX, "run_epoch", counted)
    return directories


def results(out: Path) -> dict[str, dict]:
    return {str(path.parent.relative_to(out)): json.loads(path.read_text()) for path in out.rglob("result.json")}


def test_base_to_new(
    tiny: list[str],
    in_process: list[list[str]],
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRAINERS", "zsclip plot")
    assert protocols.main(["base_to_new", "caltech101", "2", *tiny]) == 0
    found = results(tmp_path / "out")
    base = [r for name, r in found.items() if name.endswith(("seed1", "seed2")) and r["trainer"] == "PLOT"]
    new = [r for name, r in found.items() if name.endswith("eval/caltech101_new")]
    assert [r["counts"]["classes"] for r in base] == [3, 3] and [r["counts"]["classes"] for r in new] == [2, 2]
    assert {r["seed"] for r in new} == {1, 2} and all(r["shots"] == 2 for r in new)
    assert len(trained) == 2 and not any("eval" in directory for directory in trained)
    rows = {row[0]: row for row in grid(capsys.readouterr().out)[1:]}
    a, b = (sum(r["accuracy"] for r in side) / 2 for side in (base, new))
    assert rows["PLOT"][3] == f"{2 * a * b / (a + b):.2f}" and rows["PLOT"][1].startswith(f"{a:.2f} ± ")
    zero_shot = {r["subsample_classes"]: r["accuracy"] for r in found.values() if r["trainer"] == "ZeroshotCLIP"}
    assert rows["zero-shot CLIP"][1:3] == [f"{zero_shot['base']:.2f}", f"{zero_shot['new']:.2f}"]
    started = len(in_process)
    assert protocols.main(["base_to_new", "caltech101", "2", *tiny]) == 0
    text = capsys.readouterr().out
    assert len(in_process) == started and text.count("finished before") == 6
    assert "[6/6] PLOT, caltech101, 2 shots, seed 2, tested SUBSAMPLE_CLASSES new: finished before" in text


def test_domain_generalization_tests_plot_with_both_heads(
    tiny: list[str],
    in_process: list[list[str]],
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRAINERS", "plot")
    monkeypatch.setenv("SEEDS", "1")
    monkeypatch.setitem(protocols.SHIFTED, "caltech101", ("caltech101",))  # itself, in the place of a shifted set
    assert protocols.main(["domain_generalization", "caltech101", "1", *tiny]) == 0
    found = results(tmp_path / "out")
    (run,) = (name for name in found if name.endswith("seed1"))
    on, off = found[f"{run}/eval/caltech101"], found[f"{run}/eval/caltech101_GLOBAL_LOGITSFalse"]
    assert found[run]["options"]["GLOBAL_LOGITS"] and on["options"]["GLOBAL_LOGITS"]
    assert not off["options"]["GLOBAL_LOGITS"] and off["overrides"] == {"TRAINER.PLOT.GLOBAL_LOGITS": False} | {
        k: v for k, v in on["overrides"].items()
    }
    assert on["accuracy"] == found[run]["accuracy"] and len(trained) == 1
    rows = grid(capsys.readouterr().out)
    assert [row[0] for row in rows[1:]] == ["PLOT", "PLOT, tested as published"]


def test_cross_dataset(
    tiny: list[str], in_process: list[list[str]], trained: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRAINERS", "coop")
    monkeypatch.setenv("SEEDS", "1")
    monkeypatch.setattr(protocols, "_transfer", lambda request, targets, *rest: (_ for _ in ()).throw(Asked(targets)))
    for targets, expected in ((None, 10), ("symbols", 1)):
        if targets:
            monkeypatch.setenv("TARGETS", targets)
        with pytest.raises(Asked) as asked:
            protocols.main(["cross_dataset", "imagenet", "16"])
        assert len(asked.value.args[0]) == expected and "imagenet" not in asked.value.args[0]


class Asked(Exception):
    """What a protocol was about to do."""


def test_few_shot_runs_every_number_of_shots(
    tiny: list[str], in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINERS", "zsclip coop")
    assert protocols.main(["few_shot", "caltech101", "1 2", *tiny]) == 0
    rows = grid(capsys.readouterr().out)
    assert [row[:2] for row in rows[1:]] == [[n, m] for n in "12" for m in ("zero-shot CLIP", "CoOp")]
    assert len(in_process) == 1 + 2 * 2


def test_a_damaged_result_is_named_before_anything_runs(
    tiny: list[str],
    in_process: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRAINERS", "zsclip")
    argv = ["few_shot", "caltech101", "1", *tiny]
    assert protocols.main(argv) == 0 and len(in_process) == 1
    (path,) = (tmp_path / "out").rglob("result.json")
    method = ["zsclip", "caltech101", *own_options("ZeroshotCLIP", tiny)]
    capsys.readouterr()
    for content in ("{", '{"accuracy": 3}', ""):
        path.write_text(content)
        for main, words in ((protocols.main, argv), (jobs.main, method), (compare.main, argv[1:])):
            assert main(words) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and f"'{path}' is damaged" in error and "remove it" in error
    path.unlink()
    assert jobs.main(method) == 0 and len(in_process) == 2


@pytest.mark.parametrize(
    ("argv", "targets"),
    [
        (["base_to_new", "symbols"], ""),
        (["cross_dataset", "caltech101"], "symbols"),
        (["domain_generalization", "imagenet"], ""),
    ],
)
def test_what_serves_no_other_classes_is_refused_before_anything_runs(
    argv: list[str],
    targets: str,
    tiny: list[str],
    in_process: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TARGETS", targets)
    cases = (("zsclip2 tip_adapter_f coop", "TipAdapterF", "CoOp"), ("linear_probe", "LinearProbe", ""))
    for asked, named, rest in cases:
        monkeypatch.setenv("TRAINERS", asked)
        assert protocols.main([*argv, "1", *tiny]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and f"which {named} cannot serve; leave it out" in captured.err
        assert rest in captured.err and captured.out == "" and not in_process


def test_what_serves_no_other_classes_is_tested_on_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The symbols' shifted sets have all of their classes; ImageNet-A and -R have fewer."""
    monkeypatch.setenv("TRAINERS", "linear_probe")
    monkeypatch.setattr(protocols, "jobs_of", lambda *args: (_ for _ in ()).throw(Asked(args)))
    for protocol, source, targets in (
        ("domain_generalization", "symbols", ""),
        ("cross_dataset", "symbols", ""),
        ("cross_dataset", "imagenet", "imagenetv2 imagenet_sketch"),
    ):
        monkeypatch.setenv("TARGETS", targets)
        with pytest.raises(Asked):
            protocols.main([protocol, source, "1"])


@pytest.mark.parametrize("protocol", list(protocols.PROTOCOLS))
def test_each_has_its_script(protocol: str) -> None:
    """Without starting Python: what the script would run."""
    done = bash(f"protocols/{protocol}.sh", "symbols", "1 2", "A.B", "x y", PYTHON="echo")
    assert done.stdout == f"-m experiments.protocols {protocol} symbols 1 2 A.B x y\n" and not done.returncode
