"""datasets.prepare as a command: small datasets fetched from a real HTTP server, and checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from datasets import prepare
from datasets.get.checks import check, load
from datasets.get.sources import SOURCES
from tests.datasets.loopback import Server
from tests.datasets.serving import one_line, small
from tests.datasets.trees import LAYOUTS

pytestmark = pytest.mark.medium

FETCHED = [name for name in SOURCES if name != "imagenet"]


@pytest.mark.parametrize("name", FETCHED)
def test_a_dataset_is_fetched_laid_out_and_ready(
    name: str,
    server: Server,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = small(name, tmp_path / "origin", server.folder, monkeypatch)
    assert prepare.main([name, "--root", str(root), "--mirror", server.url]) == 0
    out = capsys.readouterr().out
    assert " ready " in out and f"{len(loaded['test']):,} images" in out
    here = load(SOURCES[name].dataset, root)
    assert {part: [Path(p).relative_to(root) for p, _ in items] for part, items in here.items()} == {
        part: [Path(p).relative_to(tmp_path / "origin") for p, _ in items] for part, items in loaded.items()
    }
    folder = root / SOURCES[name].folder
    assert not (folder / ".prepare").exists()
    asked = len(server.requests)
    assert asked == len(SOURCES[name].files)
    assert prepare.main([name, "--root", str(root), "--mirror", server.url]) == 0
    assert len(server.requests) == asked  # what is there is not fetched again


@pytest.mark.parametrize("name", SOURCES)
def test_ready_is_what_is_read(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with only the files that a run opens is ready. Without one it is not, but a split may be made here."""
    small(name, root, tmp_path / "served", monkeypatch)
    source = SOURCES[name]
    folder = root / source.folder
    for path in folder.iterdir():
        if not any(place.split("/")[0] == path.name for place in source.needs):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert check(name, root).state == "ready"
    made = 0
    for place in source.needs:
        (folder / place).rename(tmp_path / "away")
        status = check(name, root)
        if status.state == "ready":
            assert place == DATASET_REGISTRY.get(source.dataset).split_file
            assert f"no {place}: the split is one of our own, not CoOp's" in status.notes[0]
        else:
            assert status.state == "incomplete"
        made += status.state == "ready"
        (tmp_path / "away").rename(folder / place)
    assert check(name, root).state == "ready"
    assert made == (name in ("caltech101", "dtd", "eurosat", "food101"))


def test_imagenet_prints_the_steps(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("imagenet", tmp_path / "origin", server.folder, monkeypatch)
    assert prepare.main(["imagenet", "--root", str(root), "--mirror", server.url]) == 1
    out = capsys.readouterr().out
    assert "https://image-net.org" in out and f"ImageNet('{root / 'imagenet'}/images', s)" in out
    (root / "imagenet/images").symlink_to(tmp_path / "origin/imagenet/images")
    assert prepare.main(["imagenet", "--root", str(root)]) == 0
    assert "classnames.txt" in os.listdir(root / "imagenet")  # fetched the first time, and kept


def test_the_test_sets_take_imagenets_class_names(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small("imagenet_r", tmp_path / "origin", server.folder, monkeypatch)
    (root / "imagenet").mkdir(parents=True)
    (server.folder / "classnames.txt").rename(root / "imagenet" / "classnames.txt")
    assert prepare.main(["imagenet_r", "--root", str(root), "--mirror", server.url]) == 0


def test_the_table_agrees_with_the_loaders() -> None:
    assert len(SOURCES) == 15
    for source in SOURCES.values():
        loader = DATASET_REGISTRY.get(source.dataset)
        assert not loader.split_file or source.needs[0] == loader.split_file
        assert not loader.image_dir or any(place.split("/")[0] == loader.image_dir for place in source.needs)
        assert all(
            file.name.endswith((".zip", ".tar", ".tgz", ".tar.gz")) == bool(file.unpacks) for file in source.files
        )


def test_an_optional_file_may_be_missing(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("oxford_pets", tmp_path / "origin", server.folder, monkeypatch)
    (server.folder / "annotations.tar.gz").unlink()
    assert prepare.main(["oxford_pets", "--root", str(root), "--mirror", server.url]) == 0
    assert "annotations.tar.gz cannot be had, nor is it needed" in capsys.readouterr().out


def test_a_link_to_nothing_is_not_replaced(server: Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = root / "imagenet" / "classnames.txt"
    link.parent.mkdir(parents=True)
    link.symlink_to("nothing")
    (server.folder / link.name).write_text("n01440764 tench")
    assert prepare.main(["imagenet", "--root", str(root), "--mirror", server.url]) == 2
    assert f"'{link}' is a link to nothing" in one_line(capsys) and link.is_symlink()


@pytest.mark.parametrize("whole", [True, False])
def test_an_archive_in_the_folder_is_tried_and_left_alone(
    whole: bool, server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small("fgvc_aircraft", tmp_path / "origin", server.folder, monkeypatch)
    archive = server.folder / "fgvc-aircraft-2013b.tar.gz"
    given = root / "fgvc_aircraft" / archive.name
    given.parent.mkdir(parents=True)
    given.write_bytes(archive.read_bytes()[: None if whole else 500])
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--mirror", server.url]) == 0
    assert given.is_file() and not (given.parent / ".prepare").exists()
    assert len(server.requests) == (0 if whole else 1)


def test_the_table_of_all(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("dtd", root, tmp_path / "served", monkeypatch)
    small("oxford_pets", root, tmp_path / "served", monkeypatch)
    (root / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    shutil.rmtree(root / "oxford_pets/annotations")
    LAYOUTS["imagenet_a"](root)  # its real counts are expected
    assert prepare.main(["--check", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    states = {
        line.split()[0]: line.split()[1] for line in out.splitlines() if line.split() and line.split()[0] in SOURCES
    }
    present = {"dtd": "ready", "oxford_pets": "incomplete", "imagenet_a": "incomplete"}
    assert states == {name: present.get(name, "absent") for name in SOURCES}
    assert "oxford_pets/annotations/trainval.txt'" in out
    assert "2 classes where there should be 200; 8 test images where there should be 7,500" in out
    assert "python -m datasets.prepare imagenet prints the steps" in out
    for names, code in ((["dtd"], 0), (["dtd", "oxford_pets"], 1), (["food101"], 1)):
        assert prepare.main([*names, "--check", "--root", str(root)]) == code
    assert sorted(os.listdir(root)) == ["dtd", "imagenet-adversarial", "oxford_pets"]


def test_two_folders_that_would_do_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = LAYOUTS["eurosat"](root)
    shutil.copytree(folder / "2750", folder / "EuroSAT_RGB")
    (folder / "2750").rename(folder / "EuroSAT RGB")
    assert prepare.main(["eurosat", "--check", "--root", str(root)]) == 1
    out = capsys.readouterr().out
    assert "\neurosat    incomplete" in out and out.count("ln -s") == 2


def test_pictures_that_are_missing_or_bad_are_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(code: int, *options: str) -> str:
        assert prepare.main(["dtd", "--check", *options, "--root", str(root)]) == code
        return capsys.readouterr().out

    small("dtd", root, tmp_path / "served", monkeypatch)
    assert "all decoded" in check(0, "--decode")
    bad = [root / "dtd/images" / file for file in ("banded/banded_0000.jpg", "banded/banded_0007.jpg")]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    bad[1].write_bytes(b"")
    out = check(1, "--decode")
    assert "2 pictures cannot be decoded" in out
    named = [line for line in out.splitlines() if line.startswith("cannot decode image ")]
    assert len(named) == 2 and all(str(path) in line for path, line in zip(bad, named, strict=True))
    bad[1].unlink()
    out = check(1)
    assert "incomplete" in out and "1 of 30 files are not in" in out and "banded/banded_0007.jpg" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caltech102"], "no dataset 'caltech102'; the nearest is 'caltech101'"),
        (["dtd\n"], r"no dataset 'dtd\n'; the nearest is 'dtd'"),
        (["symbol"], "no dataset 'symbol'"),
        ([], "name a dataset"),
        *((["dtd", "--mirror", url], f"'{url}' is no address") for url in ("ftp://example.org", "http://[::1")),
    ],
)
def test_a_mistake_gives_one_line(
    arguments: list[str], says: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([*arguments, "--root", str(root)]) == 2
    assert says in one_line(capsys)
    assert not root.exists()
