"""Shows or removes the cached image features.

    python -m dassl.features [--folder FOLDER] [--clear | --max-gb GB]

Without an option it prints the number and size of the files. --max-gb removes the least recently used files until the
rest fit, --clear removes all. The default folder is $PLOT_CACHE/features (~/.cache/plot/features).
"""

from __future__ import annotations

import argparse
import sys

from dassl.extras.cli import Parser, guarded
from dassl.utils import UserError

from .store import FeatureStore


def run(args: argparse.Namespace) -> None:
    if args.max_gb is not None and not args.max_gb >= 0:
        raise UserError(f"--max-gb is {args.max_gb}; it must be 0 or more")
    store = FeatureStore(args.folder)
    if args.folder and not store.folder.is_dir():
        raise UserError(f"there is no folder '{store.folder}'")
    if args.clear or args.max_gb is not None:
        print(f"Removed {store.shrink(0 if args.clear else args.max_gb * 1e9)} files")
    files = store.files()
    size = sum(stat.st_size for _, stat in files)
    print(f"{store.folder}: {len(files)} files, {size / 1e9:.3f} GB")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("dassl.features", __doc__)
    parser.add_argument("--folder", default="", help="as TEST.FEATURE_CACHE_DIR")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--clear", action="store_true", help="remove all")
    which.add_argument("--max-gb", type=float, help="remove the least recently used until the rest fit")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
