"""Downloads and checks datasets: python -m datasets.prepare NAME... [--root DATA]

    python -m datasets.prepare caltech101 dtd             # download, unpack, lay out as CoOp's users have them, check
    python -m datasets.prepare --check                    # a table of all fifteen: ready, incomplete or absent
    python -m datasets.prepare dtd --check --decode       # decodes every picture, and names every bad file

Exit code: 0 the named datasets are ready, 1 they are not, 2 an error, 130 interrupted; the same command then continues.
Datasets that are not downloaded are only checked: image_folder (--root is then its folder) and symbols.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import shlex
import shutil
import sys
import urllib.parse
from pathlib import Path

from tabulate import tabulate

from dassl.extras.cli import Parser, complain, guarded

from .files import UserError, locked
from .get.archives import unpack
from .get.checks import check, registered
from .get.download import DISK_FULL, download
from .get.layout import File, Source
from .get.sources import SOURCES

WORK = ".prepare"  # in the dataset's folder: files that are not laid out yet


def build_parser() -> Parser:
    parser = Parser("datasets.prepare", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--root", default="", help="the folder that holds the datasets (default: $DATA, else data)")
    parser.add_argument("--check", action="store_true", help="download nothing")
    parser.add_argument("--decode", action="store_true", help="decode every picture, not only a few")
    parser.add_argument("--mirror", default="", metavar="URL", help="take every file from URL/<its name>")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return guarded(lambda: run(build_parser().parse_args(argv)), f"python -m datasets.prepare {shlex.join(argv)}")


def run(args: argparse.Namespace) -> int:
    root = Path(args.root or args.environment.DATA).expanduser().absolute()
    names = list(dict.fromkeys(args.names))
    for name in names:
        check_name(name)
    if args.mirror and not is_address(args.mirror):
        raise UserError(
            f"--mirror '{args.mirror}' is no address; it should be http:// or https://, a host and perhaps a path, "
            "with %XX for what is not ASCII"
        )
    if not names and not args.check:
        raise UserError(f"name a dataset ({', '.join(SOURCES)}), or give --check for a table of all")
    failed = 0
    if not args.check:
        for name in names:
            for refusal in prepare(name, SOURCES[name], root, args.mirror) if name in SOURCES else ():
                complain(refusal)
                failed = 2
    statuses = {name: check(name, root, args.decode) for name in names or SOURCES}
    print(f"\nData root: {root}" if root.is_dir() else f"\nData root: {root}, which does not exist")
    print(tabulate([(name, *status[:2]) for name, status in statuses.items()], headers=["dataset", "state", ""]))
    for status in statuses.values():
        for line in status.notes:
            print(line)
    return failed or int(bool(names) and any(status.state != "ready" for status in statuses.values()))


def is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:  # its host or port makes no sense
        return False


def check_name(name: str) -> None:
    """Raises UserError unless the name is a dataset's, as its config file is called."""
    if name in SOURCES:
        return
    ours = next((known for known, source in SOURCES.items() if source.dataset == registered(name)), "")
    if ours or not registered(name):
        nearest = ours or difflib.get_close_matches(name, SOURCES, n=1, cutoff=0)[0]
        raise UserError(f"no dataset '{name}'; the nearest is '{nearest}', and there are {', '.join(SOURCES)}")


def prepare(name: str, source: Source, root: Path, mirror: str = "") -> list[str]:
    """Fetches and lays out the missing files; returns one line for each required file that cannot be fetched.

    Raises:
        UserError: another process is preparing the dataset.
    """
    folder, _ = source.located(root)
    refusals = []
    with locked(root / f".{source.folder}.lock", f"another process is preparing '{folder}'"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in source.files:
            if not source.missing(root, file.places):
                continue
            try:
                fetch(name, file, folder, root, mirror)
            except OSError as error:
                if error.errno in DISK_FULL:
                    full = f"the disk is full: {error.strerror}: '{error.filename}'; nothing half-written is left"
                    raise UserError(full) from error
                raise
            except UserError as error:  # the other files may still be fetched
                if file.optional:
                    print(f"{name}: {file.name} cannot be had, nor is it needed: {error}")
                else:
                    refusals.append(f"{name}: {error}")
        for empty in (folder / WORK, folder):
            with contextlib.suppress(OSError):  # it is not empty: the next command continues from it
                empty.rmdir()
    if source.steps and source.missing(root):
        print(f"\n{source.steps.format(folder=folder)}\n")
    return refusals


def fetch(name: str, file: File, folder: Path, root: Path, mirror: str) -> None:
    """Downloads, checks and lays out one file. An archive that is already in the folder is tried first."""
    for place in file.places:
        if (folder / place).is_symlink() and not (folder / place).exists():
            raise UserError(f"'{folder / place}' is a link to nothing; mend or remove it")
    work = folder / WORK
    work.mkdir(exist_ok=True)
    target, given = work / file.name, folder / file.name
    urls = (f"{mirror.rstrip('/')}/{file.name}",) if mirror else file.urls
    if file.unpacks and given.is_file():
        target.unlink(missing_ok=True)
        target.symlink_to(given)  # so that what is removed here is ours
        try:
            return lay_out(name, file, folder, urls)
        except UserError as error:
            print(f"{name}: '{given}' is of no use, it is left alone and {file.name} fetched: {error}")
            target.unlink(missing_ok=True)
    elsewhere = root / "imagenet" / file.name  # ImageNet and its four test sets share one list of class names
    if file.name == "classnames.txt" and elsewhere.is_file():
        shutil.copyfile(elsewhere, target)
    lay_out(name, file, folder, urls)


def lay_out(name: str, file: File, folder: Path, urls: tuple[str, ...]) -> None:
    target = folder / WORK / file.name
    if not target.exists():
        print(f"{name}: fetching {file.name} from {urls[0].replace('drive:', 'Google Drive, ')}", flush=True)
    download(urls, target, file.checksum, by_hand=folder / file.name)
    if file.unpacks:
        print(f"{name}: unpacking {file.name}", flush=True)
        unpack(target, file.unpacks, folder, file.inner)
        target.unlink()
        return
    if target.suffix == ".json":
        try:
            json.loads(target.read_bytes())
        except (ValueError, RecursionError):
            target.unlink()
            raise UserError(f"{urls[0]} gives something else than '{file.name}': it is no JSON") from None
    target.replace(folder / file.name)


if __name__ == "__main__":
    sys.exit(main())
