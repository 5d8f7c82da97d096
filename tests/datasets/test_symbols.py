"""The embedded dataset: drawn on first use, read by the ordinary loader, its shifted sets for testing only."""

from pathlib import Path

import pytest

import train
from dassl.utils import UserError, read_image
from datasets import glyphs

from .trees import build

pytestmark = pytest.mark.medium


FEW = {"train": 2, "val": 1, "test": 1} | dict.fromkeys(glyphs.SHIFTS, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that has the dataset, with a few pictures of each class."""
    root = tmp_path_factory.mktemp("data")
    glyphs.write_symbols(root, per_class=FEW)
    return root


def test_it_is_drawn_once_into_the_cache_folder(
    tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glyphs, "PER_CLASS", FEW)
    root = tmp_path / "data"
    (root / "caltech-101").mkdir(parents=True)
    first = build(root, "symbols", NUM_SHOTS=1)
    drawn = {p: p.stat().st_mtime_ns for p in cache_home.rglob("*.jpg")}
    assert len(drawn) == 40 * sum(FEW.values()) and {Path(d.impath) for d in first.train_x} <= set(drawn)
    assert [d.impath for d in build(tmp_path / "none", "symbols", NUM_SHOTS=1).train_x] == [
        d.impath for d in first.train_x
    ]
    assert {p: p.stat().st_mtime_ns for p in cache_home.rglob("*.jpg")} == drawn
    assert [path.name for path in root.rglob("*")] == ["caltech-101"]
    glyphs.write_symbols(root, per_class=FEW)
    there = build(root, "symbols", NUM_SHOTS=1)
    assert [d.impath.replace(str(root), "") for d in there.train_x] != [d.impath for d in there.train_x]
    assert first.standard_path(first.test[0].impath) == there.standard_path(there.test[0].impath)


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PLOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"the symbols dataset cannot be saved in '.*file': .*; PLOT_CACHE names another"
    ):
        build(tmp_path, "symbols")


def test_it_is_read_as_jpeg(root: Path) -> None:
    before = sorted(root.rglob("*"))
    dataset = build(root, "symbols", NUM_SHOTS=1)
    assert [len(dataset.train_x), len(dataset.val), len(dataset.test), dataset.num_classes] == [40, 40, 40, 40]
    assert sorted(root.rglob("*")) == before
    assert read_image(dataset.test[0].impath).size == (128, 128)
    assert dataset.classnames == list(glyphs.THEMES)


@pytest.mark.parametrize("name", ["symbols_layout", "symbols_outline", "symbols_texture", "symbols_occlusion"])
def test_a_shifted_set_has_the_same_classes_and_other_pictures(root: Path, name: str) -> None:
    plain, shifted = build(root, "symbols"), build(root, name)
    assert shifted.classnames == plain.classnames
    assert not {d.impath for d in shifted.test} & {d.impath for d in plain.test}
    assert shifted.num_classes == build(root, name, SUBSAMPLE_CLASSES="base").num_classes * 2


def test_a_shifted_set_is_not_trained_on(
    root: Path, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*run_args, "--root", str(root), "--trainer", "CoOp", "INPUT.SIZE", "(64, 64)"]
    assert train.main([*argv, "DATASET.NAME", "SymbolsLayout"]) == 2
    assert "SymbolsLayout is for testing only" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "symbols").mkdir()
    with pytest.raises(UserError, match=r"has no 'split_zhou_Symbols.json'; remove the folder"):
        build(tmp_path, "symbols")
