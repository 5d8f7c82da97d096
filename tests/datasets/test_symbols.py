"""The embedded dataset: drawn on first use, read by the ordinary loader, its shifted sets for testing only."""

from pathlib import Path

import pytest

import train
from dassl.utils import UserError, read_image
from datasets import glyphs

from .trees import build

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a few pictures of each class are drawn, on first use."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "PER_CLASS", {"train": 2, "val": 1, "test": 1} | dict.fromkeys(glyphs.SHIFTS, 1))
        build(root, "symbols")
    return root


def test_it_is_drawn_once_and_read_as_jpeg(root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.jpg")}
    dataset = build(root, "symbols", NUM_SHOTS=1)
    assert [len(dataset.train_x), len(dataset.val), len(dataset.test), dataset.num_classes] == [40, 40, 40, 40]
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.jpg")} == before
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
