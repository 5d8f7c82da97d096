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

Members = tuple[tuple[str, bytes, str], ...]


def tar_with(folder: Path, *members: tuple[str, bytes, str]) -> Path:
    """A tar archive of (name, type, content or link's target), after x/fine.txt; and an empty folder data/."""
    (folder / "data").mkdir()
    with tarfile.open(folder / "a.tar.gz", "w:gz") as file:
        for name, kind, content in (("x/fine.txt", tarfile.REGTYPE, "fine"), *members):
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content
            file.addfile(info, io.BytesIO(content.encode()))
    return folder / "a.tar.gz"


REFUSED: dict[str, tuple[Members, str]] = {
    "up": ((("../evil.txt", tarfile.REGTYPE, "evil"),), "'../evil.txt' would be extracted"),
    "up inside": ((("x/../../evil.txt", tarfile.REGTYPE, "evil"),), "'x/../../evil.txt' would be"),
    "a name of two lines": ((("../two\nlines", tarfile.REGTYPE, "evil"),), r"'../two\\nlines' would be"),
    "a link out": ((("x/out", tarfile.SYMTYPE, "../../.."),), "'x/out' would link"),
    "an absolute link": ((("x/out", tarfile.SYMTYPE, "/etc"),), "'x/out' is a link to an absolute path"),
    "a link over a link": ((("x/up", tarfile.SYMTYPE, ".."), ("out", tarfile.SYMTYPE, "x/up/..")), "'out' would link"),
    "a hard link": ((("x/passwd", tarfile.LNKTYPE, "../../../../etc/passwd"),), "'x/passwd' would link"),
    "a device": ((("x/null", tarfile.CHRTYPE, ""),), "'x/null' is a special file"),
    "a pipe": ((("x/pipe", tarfile.FIFOTYPE, ""),), "'x/pipe' is a special file"),
    "a long name": ((("x/" + "n" * 300, tarfile.REGTYPE, "long"),), "the name of a member is too long"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_archive_that_reaches_out_is_refused_whole(kind: str, tmp_path: Path) -> None:
    members, says = REFUSED[kind]
    archive = tar_with(tmp_path, *members)
    says = f"'a.tar.gz' is refused, nothing was unpacked: {says}.*; it was removed, the same command fetches it anew"
    with pytest.raises(UserError, match=says):
        unpack(archive, {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["data"]


def test_what_stays_inside_is_unpacked(tmp_path: Path) -> None:
    links = [("x/same", tarfile.SYMTYPE, "fine.txt"), ("x/y/up", tarfile.SYMTYPE, "../fine.txt")]
    links += [("x/hard", tarfile.LNKTYPE, "x/fine.txt"), ("x/here", tarfile.SYMTYPE, ".")]
    files = [("x/here/through", tarfile.REGTYPE, "fine"), ("/x/absolute", tarfile.REGTYPE, "fine")]
    unpack(tar_with(tmp_path, *links, *files), {"x": "x"}, tmp_path / "data")
    for name in ("same", "y/up", "hard", "through", "absolute"):
        assert (tmp_path / "data/x" / name).read_text() == "fine"
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", "data"]


def test_an_old_python_is_named_and_the_archive_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"'a.tar.gz' takes Python 3.10.12 or 3.11.4 or later"):
        unpack(tar_with(tmp_path), {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["a.tar.gz", "data"]


def test_the_users_own_archive_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    given = tar_with(tmp_path, *REFUSED["up"][0])
    (tmp_path / "work" / given.name).symlink_to(given)
    with pytest.raises(UserError, match="is refused, nothing was unpacked") as error:
        unpack(tmp_path / "work" / given.name, {"x": "x"}, tmp_path)
    assert "removed" not in str(error.value)
    assert whatever_is_there(tmp_path) == [given.name, "data", "work"]


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "x/../../evil.txt", "link"])
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


def test_the_command_refuses_an_archive_that_reaches_out_until_it_is_mended(
    server: Server, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"fgvc-aircraft-2013b/data/variants.txt": b"707", "../../../evil.txt": b"evil"}
    pack(server.folder / "fgvc-aircraft-2013b.tar.gz", evil)
    done = run_command("fgvc_aircraft", "--root", str(root), "--mirror", server.url)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'../../../evil.txt' would be extracted" in done.stderr
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


def test_a_hard_link_to_nothing_is_damage(tmp_path: Path) -> None:
    archive = tar_with(tmp_path, ("x/link", tarfile.LNKTYPE, "x/absent"))
    with pytest.raises(UserError, match=r"is damaged or no archive .* it was removed"):
        unpack(archive, {"x": "x"}, tmp_path / "data")
    assert whatever_is_there(tmp_path) == ["data"]


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
