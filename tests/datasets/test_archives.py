"""Archives: refused whole where they reach out, removed where they are damaged, never half unpacked."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from datasets import prepare
from datasets.archives import unpack
from datasets.files import UserError
from tests.datasets.loopback import Server
from tests.datasets.serving import pack, run_command, small, whatever_is_there


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
    "absolute": (("/evil.txt", tarfile.REGTYPE, "evil"),),
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
    with pytest.raises(UserError, match=r"'a.tar.gz' is refused, nothing was unpacked: the (member|link) .* removed"):
        unpack(archive, {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["data"]


MISFITS: dict[str, tuple[tuple[str, bytes, str], str]] = {
    "a long name": (("x/" + "n" * 300, tarfile.REGTYPE, "long"), "name of a member is too long"),
    "a hard link to nothing": (("x/link", tarfile.LNKTYPE, "x/absent"), "is damaged or no archive"),
    "a name of two lines": (("../two\nlines", tarfile.REGTYPE, "evil"), r"member '../two\\nlines' leaves"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_an_archive_that_cannot_be_unpacked_is_removed(kind: str, tmp_path: Path) -> None:
    member, says = MISFITS[kind]
    (tmp_path / "data").mkdir()
    archive = tar_with(tmp_path, member)
    with pytest.raises(UserError, match=f"{says}.*; it was removed, the same command fetches it anew"):
        unpack(archive, {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["data"]


def test_the_users_own_archive_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    given = tar_with(tmp_path, *ESCAPES["up"])
    (tmp_path / "work" / given.name).symlink_to(given)
    with pytest.raises(UserError, match=r"leaves the folder that it is unpacked into$"):
        unpack(tmp_path / "work" / given.name, {"x": "x"}, tmp_path)
    assert whatever_is_there(tmp_path) == [given.name, "work"]


def test_links_that_stay_inside_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    members = [("x/same", tarfile.SYMTYPE, "fine.txt"), ("x/y/up", tarfile.SYMTYPE, "../fine.txt")]
    unpack(tar_with(tmp_path, *members, ("x/hard", tarfile.LNKTYPE, "x/fine.txt")), {"x": "x"}, tmp_path / "data")
    assert [(tmp_path / "data/x" / name).read_text() for name in ("same", "y/up", "hard")] == ["fine"] * 3


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "x/../../evil.txt", "link"])
def test_a_zip_that_reaches_out_is_refused_whole(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/fine.txt", "fine")
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        file.writestr(info, "/etc/passwd")
    (tmp_path / "data").mkdir()
    says = "neither a file nor a folder" if name == "link" else "leaves the folder"
    with pytest.raises(UserError, match=f"is refused, nothing was unpacked: the member '{name}'.* {says}"):
        unpack(tmp_path / "a.zip", {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["data"]


@pytest.mark.medium
def test_the_command_refuses_an_archive_that_reaches_out_until_it_is_mended(
    server: Server, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"fgvc-aircraft-2013b/data/variants.txt": b"707", "../../../evil.txt": b"evil"}
    pack(server.folder / "fgvc-aircraft-2013b.tar.gz", evil)
    done = run_command("fgvc_aircraft", "--root", str(root), "--mirror", server.url)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'../../../evil.txt' leaves the folder" in done.stderr
    assert not list(tmp_path.rglob("evil.txt")) and whatever_is_there(root) == []
    small("fgvc_aircraft", tmp_path / "origin", server.folder, monkeypatch)
    assert prepare.main(["fgvc_aircraft", "--root", str(root), "--mirror", server.url]) == 0


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
    assert whatever_is_there(tmp_path) == []


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
