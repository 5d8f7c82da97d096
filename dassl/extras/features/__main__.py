"""Shows or removes the cached image features.

    python -m dassl.features [--folder FOLDER] [--clear | --max-gb GB]

Without an option it prints the number and size of the files. --max-gb removes the least recently used files until the
rest fit, --clear removes all. The default folder is $XDG_CACHE_HOME/plot/features (~/.cache/plot/features).
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from .store import FeatureStore


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m dassl.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", default="", help="as TEST.FEATURE_CACHE_DIR")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--clear", action="store_true", help="remove all")
    which.add_argument("--max-gb", type=float, help="remove the least recently used until the rest fit")
    args = parser.parse_args(argv)
    if args.max_gb is not None and not args.max_gb >= 0:
        print(f"error: --max-gb is {args.max_gb}; it must be 0 or more", file=sys.stderr)
        return 2
    store = FeatureStore(args.folder)
    if args.folder and not store.folder.is_dir():
        print(f"error: there is no folder '{store.folder}'", file=sys.stderr)
        return 2
    try:
        if args.clear or args.max_gb is not None:
            print(f"Removed {store.shrink(0 if args.clear else args.max_gb * 1e9)} files")
        files = store.files()
    except OSError as error:
        print(f"error: {error.strerror}: '{error.filename}'", file=sys.stderr)
        return 2
    size = sum(stat.st_size for _, stat in files)
    print(f"{store.folder}: {len(files)} files, {size / 1e9:.3f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
