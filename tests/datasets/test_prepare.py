"""datasets.prepare against a real HTTP server: whole downloads, broken ones, bad archives, full disks, checks."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from datasets import prepare
from datasets.archives import unpack
from datasets.checks import load
from datasets.download import download
from datasets.files import UserError
from datasets.sources import SOURCES
from tests.datasets.loopback import Server, serve
from tests.datasets.trees import LAYOUTS

REPOSITORY = Path(prepare.__file__).resolve().parents[1]
FETCHED = [name for name in SOURCES if name != "imagenet"]


def pack(archive: Path, content: dict[str, Path | bytes]) -> None:
    """Writes a .zip or .tar file of {path in the archive: folder, file or bytes}."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, what in content.items():
                if isinstance(what, bytes):
                    file.writestr(name, what)
                    continue
                for path in [what] if what.is_file() else what.rglob("*"):
                    file.write(path, (name / path.relative_to(what)).as_posix() if path != what else name)
        return
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
        for name, what in content.items():
            if isinstance(what, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(what)
                file.addfile(info, io.BytesIO(what))
            else:
                file.add(what, name)


def small(name: str, folder: Path, served: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Serves a small dataset as its official files, and fits the table to it; returns what its loader reads."""
    LAYOUTS[name](folder)
    source = SOURCES[name]
    loaded = load(source.dataset, folder)  # saves the split file
    here = folder / source.folder
    (here / "imdb").mkdir(exist_ok=True)
    (here / "imdb" / "imdb.mat").write_bytes(b"lists of images")
    for file in source.files:
        unpacks = file.unpacks or {}
        if file.inner:
            inner = served / "inner" / Path(file.inner).name
            pack(inner, {path: here / place for path, place in unpacks.items()})
            pack(served / file.name, {file.inner: inner})
        elif unpacks:
            pack(served / file.name, {Path(path): here / place for path, place in unpacks.items()})  # type: ignore[misc]
        else:
            served.mkdir(exist_ok=True)
            (served / file.name).write_bytes((here / file.name).read_bytes())
    counts = tuple(len(loaded[part]) if known else None for part, known in zip(loaded, source.counts, strict=True))
    files = tuple(dataclasses.replace(file, checksum="") for file in source.files)
    n_cls = len({label for _, label in loaded["train"]})
    fitted = dataclasses.replace(source, counts=counts, classes=n_cls, files=files)
    monkeypatch.setitem(SOURCES, name, fitted)
    return loaded


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on stderr: a single line."""
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def run_command(*arguments: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "datasets.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, preexec_fn=before, timeout=100)


def whatever_is_there(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- whole datasets


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
        assert loader.dataset_dir == source.folder
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


# --- connections


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (server.folder / "a.bin").write_bytes(data)
    server.break_at["a.bin"] = 100_000
    download([f"{server.url}/a.bin"], tmp_path / "a.bin", f"sha256:{hashlib.sha256(data).hexdigest()}")
    assert (tmp_path / "a.bin").read_bytes() == data
    first, second = server.requests
    assert (first.range, first.sent) == (None, 100_000)
    assert (second.range, second.if_range, second.sent) == ("bytes=100000-", '"1"', 200_000)
    assert whatever_is_there(tmp_path) == ["a.bin", "served", "served/a.bin"]


def test_an_interrupted_command_goes_on(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("fgvc_aircraft", tmp_path / "origin", server.folder, monkeypatch)
    archive = server.folder / "fgvc-aircraft-2013b.tar.gz"
    size = archive.stat().st_size
    server.break_at[archive.name], server.hang = size // 3, True
    arguments = ["fgvc_aircraft", "--root", str(root), "--mirror", server.url]
    command = [sys.executable, "-m", "datasets.prepare", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    work = root / "fgvc_aircraft" / ".prepare"
    deadline = time.monotonic() + 60
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the bytes are on their way
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    part = work / f"{archive.name}.part"
    assert part.read_bytes() == archive.read_bytes()[: size // 3]
    assert prepare.main([*arguments[:-2], "--check"]) == 1
    assert "absent" in capsys.readouterr().out
    assert prepare.main(arguments) == 0
    last = server.requests[-1]
    assert (last.range, last.sent) == (f"bytes={size // 3}-", size - size // 3)
    assert not work.exists()


def test_a_file_that_has_changed_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (server.folder / "a.bin").write_bytes(b"new" * 1000)
    (tmp_path / "a.bin.part").write_bytes(b"old" * 500)
    (tmp_path / "a.bin.part.from").write_text(f'{server.url}/a.bin\n"0"')
    download([f"{server.url}/a.bin"], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new" * 1000
    assert (server.requests[0].range, server.requests[0].sent) == ("bytes=1500-", 3000)


def test_a_part_from_elsewhere_is_not_continued(server: Server, tmp_path: Path) -> None:
    (server.folder / "a.bin").write_bytes(b"new" * 1000)
    (tmp_path / "a.bin.part").write_bytes(b"old" * 500)
    (tmp_path / "a.bin.part.from").write_text('http://elsewhere/a.bin\n"1"')
    download([f"{server.url}/a.bin"], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new" * 1000 and server.requests[0].range is None


def test_a_part_that_is_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (server.folder / "a.bin").write_bytes(b"new" * 1000)
    (tmp_path / "a.bin.part").write_bytes(b"new" * 1000)
    (tmp_path / "a.bin.part.from").write_text(f'{server.url}/a.bin\n"1"')
    download([f"{server.url}/a.bin"], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new" * 1000 and server.requests[0].sent == 0


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    (server.folder / "b.bin").write_bytes(b"here")
    download([f"{server.url}/a.bin", f"{server.url}/b.bin"], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"here"


def test_404_is_one_line_with_the_address(server: Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--mirror", server.url]) == 2
    assert f"{server.url}/fgvc-aircraft-2013b.tar.gz answers 404" in one_line(capsys)
    assert whatever_is_there(root) == []


def test_no_server_is_one_line(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.download.time.sleep", lambda seconds: None)
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--mirror", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9/fgvc-aircraft-2013b.tar.gz cannot be fetched: " in one_line(capsys)


def test_a_wrong_checksum(server: Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (server.folder / "split_zhou_DescribableTextures.json").write_text("{}")
    pack(server.folder / "dtd-r1.0.1.tar.gz", {"dtd/images/banded/a.jpg": b"not the real one"})
    assert prepare.main(["dtd", "--root", str(root), "--mirror", server.url]) == 2
    err = one_line(capsys)
    found = hashlib.md5((server.folder / "dtd-r1.0.1.tar.gz").read_bytes()).hexdigest()
    assert f"MD5 sum {found} where fff73e5086ae6bdbea199a49dfb8a4c1 is expected; it was removed" in err
    assert whatever_is_there(root) == ["dtd", "dtd/split_zhou_DescribableTextures.json"]


def test_one_dataset_at_a_time(server: Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "dtd").mkdir(parents=True)
    with prepare.locked(root / "dtd"):
        assert prepare.main(["dtd", "--root", str(root), "--mirror", server.url]) == 2
    assert f"another process is preparing '{root / 'dtd'}'" in one_line(capsys)


# --- Google Drive


@pytest.fixture
def gdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a module called gdown, with this body of its download(), before the real one."""

    def install(body: str) -> None:
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub" / "gdown.py").write_text(f"def download(id, output, quiet, resume):\n    {body}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "stub"))
        monkeypatch.delitem(sys.modules, "gdown", raising=False)

    return install


def test_a_split_file_from_google_drive(gdown: Callable[[str], None], tmp_path: Path, root: Path) -> None:
    gdown("open(output, 'w').write('{\"of\": \"' + id + '\"}'); return output")
    source = SOURCES["dtd"]
    (root / "dtd").mkdir(parents=True)
    prepare.fetch("dtd", source.files[0], root / "dtd", root, "")
    split = json.loads((root / "dtd" / "split_zhou_DescribableTextures.json").read_text())
    assert split == {"of": "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "raise RuntimeError('quota')",
            r"Google Drive does not give 'split_zhou_X.json' \(quota\); open https://drive",
        ),
        ("return None", "Google Drive does not give 'split_zhou_X.json'; open https://drive.google.com/file/d/ID/view"),
        ("import gone", r"does not give 'split_zhou_X.json' \(No module named 'gone'\)"),
    ],
)
def test_google_drive_refuses(body: str, says: str, gdown: Callable[[str], None], tmp_path: Path) -> None:
    gdown(body)
    with pytest.raises(UserError, match=says):
        download(["drive:ID"], tmp_path / "split_zhou_X.json")


def test_gdown_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"takes gdown: pip install gdown, or open https://.*/ID/view in a browser and"):
        download(["drive:ID"], tmp_path / "split.json")


def test_a_web_page_in_the_place_of_a_split_file(
    server: Server, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (server.folder / "split_zhou_DescribableTextures.json").write_text("<html>too many users</html>")
    assert prepare.main(["dtd", "--root", str(root), "--mirror", server.url]) == 2
    err = capsys.readouterr().err.splitlines()  # a line for each file
    assert len(err) == 2 and all(line.startswith("error: dtd: ") for line in err)
    assert "it is no JSON" in err[0] and "answers 404" in err[1]
    assert not (root / "dtd").exists()


# --- archives


def tar_with(folder: Path, *members: tuple[str, bytes, str]) -> Path:
    archive = folder / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, kind, content in (("x/fine.txt", tarfile.REGTYPE, "fine"), *members):
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content
            file.addfile(info, io.BytesIO(content.encode()))
    return archive


ESCAPES: dict[str, tuple[tuple[str, bytes, str], ...]] = {
    "up": (("../evil.txt", tarfile.REGTYPE, "evil"),),
    "up inside": (("x/../../evil.txt", tarfile.REGTYPE, "evil"),),
    "absolute": (("/tmp/evil.txt", tarfile.REGTYPE, "evil"),),
    "a link out": (("x/out", tarfile.SYMTYPE, "../../.."),),
    "an absolute link": (("x/out", tarfile.SYMTYPE, "/etc"),),
    "through a link": (("x/in", tarfile.SYMTYPE, "."), ("x/in/evil.txt", tarfile.REGTYPE, "evil")),
    "a link over a link": (("x/up", tarfile.SYMTYPE, ".."), ("out", tarfile.SYMTYPE, "x/up/..")),
    "a hard link": (("x/passwd", tarfile.LNKTYPE, "../../../../etc/passwd"),),
    "a device": (("x/null", tarfile.CHRTYPE, ""),),
    "a pipe": (("x/pipe", tarfile.FIFOTYPE, ""),),
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_an_archive_that_reaches_out_is_refused_whole(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    archive = tar_with(tmp_path, *ESCAPES[kind])
    before = whatever_is_there(tmp_path)
    with pytest.raises(UserError, match=r"'a.tar.gz' is refused, nothing was unpacked: the (member|link) "):
        unpack(archive, {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == before


def test_links_that_stay_inside_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    members = [("x/same", tarfile.SYMTYPE, "fine.txt"), ("x/y/up", tarfile.SYMTYPE, "../fine.txt")]
    unpack(tar_with(tmp_path, *members, ("x/hard", tarfile.LNKTYPE, "x/fine.txt")), {"x": "x"}, tmp_path / "data")
    assert [(tmp_path / "data/x" / name).read_text() for name in ("same", "y/up", "hard")] == ["fine"] * 3


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "x/../../evil.txt", "link"])
def test_a_zip_that_reaches_out_is_refused_whole(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/fine.txt", "fine")
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        file.writestr(info, "/etc/passwd")
    (tmp_path / "data").mkdir()
    before = whatever_is_there(tmp_path)
    with pytest.raises(UserError, match="is refused, nothing was unpacked"):
        unpack(tmp_path / "a.zip", {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == before


def test_the_command_refuses_an_archive_that_reaches_out(server: Server, tmp_path: Path, root: Path) -> None:
    evil = {"fgvc-aircraft-2013b/data/variants.txt": b"707", "../../../evil.txt": b"evil"}
    pack(server.folder / "fgvc-aircraft-2013b.tar.gz", evil)
    done = run_command("fgvc_aircraft", "--root", str(root), "--mirror", server.url)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'../../../evil.txt' leaves the folder" in done.stderr
    assert not list(tmp_path.rglob("evil.txt")) and not list(root.rglob("variants.txt"))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_damaged_archive_is_removed(name: str, tmp_path: Path) -> None:
    pack(tmp_path / name, {"x/a.bin": os.urandom(50_000)})
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[:20_000], b"<html>not found</html>", b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"'{name}' is damaged or no archive .* it was removed"):
            unpack(tmp_path / name, {"x": "x"}, tmp_path)
        assert whatever_is_there(tmp_path) == []


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", {"y/a.txt": b"a"})
    with pytest.raises(UserError, match=r"'a\.zip' has no x in it"):
        unpack(tmp_path / "a.zip", {"x": "x"}, tmp_path)
    assert whatever_is_there(tmp_path) == ["a.zip"]


def test_what_a_killed_process_unpacked_does_not_count(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("fgvc_aircraft", tmp_path / "origin", server.folder, monkeypatch)
    work = root / "fgvc_aircraft" / ".prepare"
    left = work / "fgvc-aircraft-2013b.tar.gz.unpacking" / "outer" / "fgvc-aircraft-2013b" / "data" / "images"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"half")
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--check"]) == 1
    assert "absent" in capsys.readouterr().out
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--mirror", server.url]) == 0
    assert not work.exists() and not list(root.rglob("half.jpg"))


# --- full disks


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel refuses to write more to any file


@pytest.mark.parametrize("what", ["download", "unpack"])
def test_a_disk_that_fills_up(what: str, server: Server, root: Path) -> None:
    content = os.urandom(200_000) if what == "download" else bytes(200_000)  # zeros pack well
    archive = server.folder / "fgvc-aircraft-2013b.tar.gz"
    pack(archive, {"fgvc-aircraft-2013b/data/images/1.jpg": content})
    assert (archive.stat().st_size > 100_000) == (what == "download")
    done = run_command("fgvc_aircraft", "--root", str(root), "--mirror", server.url, before=limit_file_size)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: the disk is full: ") and "nothing half-written is left" in done.stderr
    left = [] if what == "download" else [f"fgvc_aircraft/.prepare/{archive.name}"]
    assert [path for path in whatever_is_there(root) if (root / path).is_file()] == left


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("announced", [True, False])
def test_a_disk_that_is_too_small(
    announced: bool, server: Server, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(server.folder / "fgvc-aircraft-2013b.tar.gz", {"x": os.urandom(2_000_000)})
    server.with_length = announced
    assert prepare.main(["fgvc_aircraft", "--root", str(small_disk), "--mirror", server.url]) == 2
    assert "the disk is full: " in one_line(capsys)
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("a file")
    assert prepare.main(["dtd", "--root", str(tmp_path / "data"), "--mirror", server.url]) == 2
    assert str(tmp_path / "data") in one_line(capsys)


# --- checks


def test_the_table_of_all(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("dtd", root, tmp_path / "served", monkeypatch)
    small("oxford_pets", root, tmp_path / "served", monkeypatch)
    (root / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    LAYOUTS["imagenet_a"](root)  # its real counts are expected
    assert prepare.main(["--check", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    states = {
        line.split()[0]: line.split()[1] for line in out.splitlines() if line.split() and line.split()[0] in SOURCES
    }
    present = {"dtd": "ready", "oxford_pets": "incomplete", "imagenet_a": "incomplete"}
    assert states == {name: present.get(name, "absent") for name in SOURCES}
    assert "no split_zhou_OxfordPets.json in" in out
    assert "2 classes where there should be 200; 8 test images where there should be 7,500" in out
    assert "python -m datasets.prepare imagenet prints the steps" in out
    for names, code in ((["dtd"], 0), (["dtd", "oxford_pets"], 1), (["food101"], 1)):
        assert prepare.main([*names, "--check", "--root", str(root)]) == code
    assert sorted(os.listdir(root)) == ["dtd", "imagenet-adversarial", "oxford_pets"]


def test_a_missing_picture_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("dtd", root, tmp_path / "served", monkeypatch)
    (root / "dtd/images/banded/banded_0003.jpg").unlink()
    assert prepare.main(["dtd", "--check", "--root", str(root)]) == 1
    out = capsys.readouterr().out
    assert "incomplete" in out and "1 of 30 files are not in" in out and "banded/banded_0003.jpg" in out


def test_every_bad_picture_is_named_at_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("dtd", root, tmp_path / "served", monkeypatch)
    assert prepare.main(["dtd", "--check", "--decode", "--root", str(root)]) == 0
    assert "all decoded" in capsys.readouterr().out
    images = root / "dtd/images"
    bad = [
        images / "banded/banded_0000.jpg",
        images / "banded/banded_0007.jpg",
        images / "zigzagged/zigzagged_0009.jpg",
    ]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    bad[1].write_bytes(b"")
    bad[2].write_text("no picture")
    assert prepare.main(["dtd", "--check", "--decode", "--root", str(root)]) == 1
    out = capsys.readouterr().out
    assert "3 pictures cannot be decoded" in out
    named = [line for line in out.splitlines() if line.startswith("cannot decode image ")]
    assert len(named) == 3 and all(str(path) in line for path, line in zip(bad, named, strict=True))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caltech102"], "no dataset 'caltech102'; the nearest is 'caltech101'"),
        (["caltech102", "--check"], "no dataset 'caltech102'"),
        (["symbols"], "'symbols' is not downloaded; --check alone takes it"),
        ([], "name a dataset"),
        (["dtd", "--mirror", "ftp://example.org"], "--mirror 'ftp://example.org' is no address"),
        (["dtd", "--chekc"], "unrecognized arguments: --chekc"),
    ],
)
def test_a_mistake_gives_one_line(
    arguments: list[str], says: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([*arguments, "--root", str(root)]) == 2
    assert says in one_line(capsys)
    assert not root.exists()
