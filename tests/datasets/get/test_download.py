"""Downloads from a real HTTP server: whole, broken off, refused; Google Drive; disks that fill up."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets import prepare
from datasets.files import UserError
from datasets.get.download import download, require_room
from datasets.get.sources import SOURCES
from tests.datasets.loopback import Server
from tests.datasets.serving import REPOSITORY, one_line, pack, run_command, small, whatever_is_there

pytestmark = pytest.mark.medium


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
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where it is ignored, as under nohup
    )
    work = root / "fgvc_aircraft" / ".prepare"
    deadline = time.monotonic() + 60
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the bytes are on their way
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"\npython -m datasets.prepare {arguments[0]} " in err
    part = work / f"{archive.name}.part"
    assert part.read_bytes() == archive.read_bytes()[: size // 3]
    assert prepare.main([*arguments[:-2], "--check"]) == 1
    assert "absent" in capsys.readouterr().out
    assert prepare.main(arguments) == 0
    last = server.requests[-1]
    assert (last.range, last.sent) == (f"bytes={size // 3}-", size - size // 3)
    assert not work.exists()


@pytest.mark.parametrize(
    ("part", "origin", "asked", "sent"),
    [
        (b"old" * 500, '{}/a.bin\n"0"', "bytes=1500-", 3000),  # another version
        (b"old" * 500, 'http://elsewhere/a.bin\n"1"', None, 3000),
        (b"new" * 1000, '{}/a.bin\n"1"', "bytes=3000-", 0),  # already whole
    ],
)
def test_only_a_part_of_the_same_file_is_continued(
    part: bytes, origin: str, asked: str | None, sent: int, server: Server, tmp_path: Path
) -> None:
    (server.folder / "a.bin").write_bytes(b"new" * 1000)
    (tmp_path / "a.bin.part").write_bytes(part)
    (tmp_path / "a.bin.part.from").write_text(origin.format(server.url))
    download([f"{server.url}/a.bin"], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new" * 1000
    assert (server.requests[0].range, server.requests[0].sent) == (asked, sent)


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    (server.folder / "b.bin").write_bytes(b"here")
    download([f"{server.url}/a.bin", f"{server.url}/b.bin"], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"here"


def test_a_redirect_that_goes_round_is_one_line(server: Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.redirect = True
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--mirror", server.url]) == 2
    assert "infinite loop. The last 30x error message was" in one_line(capsys)
    assert whatever_is_there(root) == []


def test_no_server_is_one_line(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.get.download.time.sleep", lambda seconds: None)
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
    with prepare.locked(root / ".dtd.lock"):
        assert prepare.main(["dtd", "--root", str(root), "--mirror", server.url]) == 2
    assert f"another process is preparing '{root / 'dtd'}'" in one_line(capsys)


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


def test_google_drive_refuses(gdown: Callable[[str], None], tmp_path: Path) -> None:
    gdown("raise RuntimeError('quota')")
    says = r"Google Drive does not give 'split_zhou_X.json' \(quota\); open https://drive.google.com/file/d/ID/view"
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
    assert "it is no JSON" in err[0] and f"{server.url}/dtd-r1.0.1.tar.gz answers 404" in err[1]
    assert not (root / "dtd").exists()


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel refuses to write more to any file


@pytest.mark.slow
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


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk is full: "):
        require_room(tmp_path, 10**18)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("a file")
    assert prepare.main(["dtd", "--root", str(tmp_path / "data"), "--mirror", server.url]) == 2
    assert str(tmp_path / "data") in one_line(capsys)
