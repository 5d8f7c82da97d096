"""Archives: refused whole where they reach out, removed where they are damaged, never half unpacked."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from datasets import prepare
from datasets.files import UserError
from datasets.get.archives import unpack
from tests.datasets.loopback import Server
from tests.datasets.serving import pack, small, whatever_is_there


def tar_with(folder: Path, *members: tuple[str, bytes, str]) -> Path:
    """A tar archive of x/fine.txt and (name, type, content or link's target), and an empty folder data/."""
    (folder / "data").mkdir()
    with tarfile.open(folder / "a.tar.gz", "w:gz") as file:
        for name, kind, content in (("x/fine.txt", tarfile.REGTYPE, "fine"), *members):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            info.linkname = "" if kind == tarfile.REGTYPE else content
            file.addfile(info, io.BytesIO(content.encode()))
    return folder / "a.tar.gz"


@pytest.mark.parametrize(
    ("name", "kind", "content", "says"),
    [
        ("x/../../two\nlines", tarfile.REGTYPE, "evil", r"is refused, .* 'x/../../two\\nlines' would be extracted"),
        ("x/out", tarfile.SYMTYPE, "../../..", "is refused, nothing was unpacked: 'x/out' would link"),
        ("x/passwd", tarfile.LNKTYPE, "../../../../etc/passwd", "is refused, nothing was unpacked: 'x/passwd' would"),
        ("x/null", tarfile.CHRTYPE, "", "is refused, nothing was unpacked: 'x/null' is a special file"),
        ("x/" + "n" * 300, tarfile.REGTYPE, "long", "is refused, .*: the name of a member is too long"),
        ("x/link", tarfile.LNKTYPE, "x/absent", "is damaged or no archive"),
    ],
)
def test_a_tar_that_reaches_out_is_refused_whole(
    name: str, kind: bytes, content: str, says: str, tmp_path: Path
) -> None:
    archive = tar_with(tmp_path, (name, kind, content))
    with pytest.raises(UserError, match=f"'a.tar.gz' {says}.*; it was removed, the same command fetches it anew"):
        unpack(archive, {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["data"]


def test_what_stays_inside_is_unpacked(tmp_path: Path) -> None:
    links = [("x/y/up", tarfile.SYMTYPE, "../fine.txt"), ("x/hard", tarfile.LNKTYPE, "x/fine.txt")]
    archive = tar_with(tmp_path, *links, ("/x/absolute", tarfile.REGTYPE, "fine"))
    unpack(archive, {"x": "x"}, tmp_path / "data")
    assert [(tmp_path / "data/x" / name).read_text() for name in ("y/up", "hard", "absolute")] == ["fine"] * 3


def test_an_old_python_is_named_and_the_archive_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"'a.tar.gz' takes Python 3.10.12 or 3.11.4 or later"):
        unpack(tar_with(tmp_path), {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["a.tar.gz", "data"]


def test_the_users_own_archive_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    given = tar_with(tmp_path, ("../evil.txt", tarfile.REGTYPE, "evil"))
    (tmp_path / "work" / given.name).symlink_to(given)
    with pytest.raises(UserError, match="is refused, nothing was unpacked") as error:
        unpack(tmp_path / "work" / given.name, {"x": "x"}, tmp_path)
    assert "removed" not in str(error.value)
    assert whatever_is_there(tmp_path) == [given.name, "data", "work"]


@pytest.mark.parametrize("name", ["/tmp/evil.txt", "x/../../evil.txt", "link"])
def test_a_zip_that_reaches_out_is_refused_whole(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/fine.txt", "fine")
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        file.writestr(info, "/etc/passwd")
    says = "is neither a file nor a folder" if name == "link" else "would be written outside the folder"
    with pytest.raises(UserError, match=f"is refused, nothing was unpacked: '{name}' {says}"):
        unpack(tmp_path / "a.zip", {"x": "x"}, tmp_path)
    assert whatever_is_there(tmp_path) == []


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
