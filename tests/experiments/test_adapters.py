"""The methods on frozen features in comparisons, tables, figures and sweeps; and PLOT's runs before PLOT-Adapter's."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

import pytest

from dassl.extras.cli import Environment
from experiments import compare, figures, jobs, protocols
from experiments.recipes import compared_methods, prescribed_epochs, script_of
from experiments.sweep import command
from experiments.tables.request import Request
from experiments.tables.results import read_runs
from runs.directory import REPOSITORY
from runs.recipes import config_file, recipe
from tests.experiments.test_figures import lines
from tests.experiments.test_tables import commands, grid, show

LABELS = {
    "ZeroshotCLIP2": "zero-shot CLIP, ensemble",
    "LinearProbe": "linear probe",
    "NearestClassMean": "nearest class mean",
    "TipAdapter": "Tip-Adapter",
    "TipAdapterF": "Tip-Adapter-F",
    "ZeroshotPLOT": "zero-shot PLOT",
    "PLOTAdapter": "PLOT-Adapter",
}


def test_their_recipes_and_scripts() -> None:
    assert not {*LABELS} & {*compared_methods()}
    for trainer in LABELS:
        (script,) = script_of(trainer)
        assert script != "scripts/run.sh" and (REPOSITORY / script).is_file()
        for backbone in ("rn50", "rn101", "vit_b16", "vit_b32"):
            assert config_file(trainer, recipe(trainer, "dtd", 1, backbone=backbone)[0]).is_file()
        config, pairs = recipe(trainer, "symbols", 1)
        assert (PurePath(config).name, pairs) == ("symbols", "")
    assert recipe("LinearProbe", "dtd", 1) == ("rn50", "")
    assert recipe("ZeroshotCLIP2", "imagenet", 1) == ("rn50", "TRAINER.ZSCLIP2.TEMPLATES ensemble")
    node = "TRAINER.TIP_ADAPTER."
    assert recipe("TipAdapter", "caltech101", 1)[1] == f"{node}BETA_MAX 12 {node}ALPHA_MAX 5"
    grid_of = f"{node}BETA_MAX 12 {node}ALPHA_MAX 10"
    assert recipe("TipAdapterF", "eurosat", 1)[1] == f"{grid_of} OPTIM.MAX_EPOCH 100 {node}ALPHA 2"
    assert recipe("PLOTAdapter", "food101", 1)[1].startswith("OPTIM.MAX_EPOCH 5 TRAINER.PLOT_ADAPTER.BETA 0.1 ")


def test_the_plot_run_is_named_by_its_path_in_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wherever OUT is, and of the same config, seed and options."""
    found = []
    for out in ("output", "/tmp/elsewhere"):
        monkeypatch.setenv("OUT", out)
        environment = Environment(OUT=out, N="2")
        job = jobs.Job("PLOTAdapter", "dtd", 4, *recipe("PLOTAdapter", "dtd", 4, "vit_b16"), (), environment)
        found.append(job.arguments(3))
    assert found[0] == found[1]
    told = found[0][found[0].index("--recipe") + 1]
    assert told.endswith("/PLOT/vit_b16_4shots/n2_nctx16_cscFalse_ctpend/seed3")
    assert "TRAINER.PLOT_ADAPTER.PLOT_RUN " in told


def test_an_option_of_plot_chooses_the_plot_run_of_plot_adapter() -> None:
    """Side by side as alone; another such option is another run of both, and other methods do not get it."""
    trainers, environment = ["CoOp", "PLOT", "PLOTAdapter"], Environment(OUT="output")
    found = []
    for opts in ([], ["TRAINER.PLOT.EPS", "0.2"], ["TRAINER.PLOT_ADAPTER.EPS", "0.2"]):
        coop, plot, adapter = (
            job.run(1) for job in compare.jobs_of(trainers, "symbols", 1, [*opts, "OPTIM.LR", "0.1"], environment)
        )
        assert [need.directory for need in adapter.needs] == [plot.directory]
        found.append((coop.directory, plot.directory, adapter.directory))
    assert [len({*paths}) for paths in zip(*found, strict=True)] == [1, 2, 3]


def test_a_plot_run_that_the_user_names_is_not_trained() -> None:
    pair = ["TRAINER.PLOT_ADAPTER.PLOT_RUN", "mine"]
    job = jobs.Job("PLOTAdapter", "symbols", 1, *recipe("PLOTAdapter", "symbols", 1), pair, Environment(OUT="output"))
    assert not job.needed and not job.run(1).needs
    assert "--recipe" not in job.arguments(1) and job.arguments(1)[-2:] == pair


def test_a_test_elsewhere_needs_no_run_of_plot_there() -> None:
    """The shifted sets are for tests alone; what the adapter has of PLOT is in its checkpoint."""
    (job,) = compare.jobs_of(["PLOTAdapter"], "symbols", 1, [], Environment(OUT="output", SEEDS="1"))
    assert job.run(1).needs and not protocols.Test(job, "symbols_layout").runs[0].needs


@pytest.mark.slow
def test_side_by_side_and_again(
    tiny: list[str],
    in_process: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = [word for pair in zip(tiny[::2], tiny[1::2], strict=True) if "BATCH_SIZE" not in pair[0] for word in pair]
    monkeypatch.setenv("N", "")
    monkeypatch.setenv("TRAINERS", "zsclip2 linear_probe tip_adapter tip_adapter_f zsplot plot_adapter")
    texts = []
    for _ in range(2):
        assert compare.main(["caltech101", "1", *tiny]) == 0
        texts.append(capsys.readouterr().out)
        assert [row[0] for row in grid(texts[-1])[1:]] == list(LABELS.values())
    assert grid(texts[0]) == grid(texts[1]) and "chosen on the test set" not in texts[0]
    assert len(in_process) == 2 + 4 * 2 + 2  # each of PLOT-Adapter's comes behind its own of PLOT
    trainers = [argv[argv.index("--trainer") + 1] for argv in in_process]
    assert trainers[-4:] == ["PLOT", "PLOTAdapter"] * 2

    out = tmp_path / "out"
    for path in out.rglob("result.json"):  # so short a training is not the recipe's
        result = json.loads(path.read_text())
        prescribed = prescribed_epochs(result["trainer"], "caltech101", 1)
        result["epochs"] = result["epochs"] and prescribed
        result["overrides"].pop("OPTIM.MAX_EPOCH", None)
        path.write_text(json.dumps(result))
    text = show(capsys, "few-shot", "--dataset", "caltech101", "--out", str(out), "--shots", "1", "2")
    rows = {row[1]: row for row in grid(text)[1:]}
    assert {*LABELS.values()} < {*rows} and all(rows[label][2] for label in LABELS.values()), text
    assert any(" bash scripts/plot_adapter/main.sh caltech101 2 " in line for line in commands(text)), text
    drawn = lines(figures.draw(Request(out, read_runs(out), ("caltech101",), (1,), methods=list(LABELS))).axes[0])
    assert {*LABELS.values()} <= {*drawn}

    monkeypatch.setenv("TRAINERS", "tip_adapter tip_adapter_f")
    assert compare.main(["caltech101", "1", *tiny, "TRAINER.TIP_ADAPTER.AS_PUBLISHED", "True"]) == 0
    text = capsys.readouterr().out
    assert "chosen on the test set" in text and "run as its published code does" in text
    again = show(capsys, "few-shot", "--dataset", "caltech101", "--out", str(out), "--shots", "1", "2")
    assert {row[1]: row for row in grid(again)[1:]} == rows  # these runs have no place among the others


def test_a_sweep_names_plot_before_plot_adapter(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--datasets", "caltech101", "--shots", "1", "--dry-run", *tiny]
    assert command.main(["--trainers", "PLOT,PLOTAdapter", *argv]) == 0
    assert "PLOTAdapter" in capsys.readouterr().out
    for trainers in ("PLOTAdapter", "PLOTAdapter,PLOT"):
        assert command.main(["--trainers", trainers, *argv]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "needs the runs of PLOT: name that before it" in error
