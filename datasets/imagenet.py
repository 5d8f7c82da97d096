"""ImageNet (Deng et al., 2009; 1,281,167 training images, tested on its 50,000 validation images) and its variants.

The folders are the split, named by ``classnames.txt`` (CLIP's names, as in CoOp), a line "n01440764 tench". The
variants are for testing only: -V2 (Recht et al., 2019) has folders 0 to 999 in the order of these, -Sketch (Wang et
al., 2019) has all thousand classes, -A and -R (Hendrycks et al., 2021) have two hundred each. On -A and -R a model
chooses between those 200 classes, labelled 0 to 199 in the order of their folders, as in CoOp. CoOp takes a folder's
images in the order in which the file system lists them; here they are sorted.
"""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, list_classes_once, read_rows
from .splits import Item, Split

Listing = Mapping[str, list[str]]  # the files in each class folder


class ImageNetFolders(FewShotDataset):
    """Folders that are classes, named by ``classnames.txt``."""

    annotation = "classnames.txt"

    def read_names(self, folder: Path) -> dict[str, str]:
        """Names by class folder, sorted by folder.

        CLIP's names have no comma, no quotation mark and no number in front. ImageNet's own lists have one of these
        ("tench, Tinca tinca"). They are refused: CoOp's results are of CLIP's names.
        """
        path = folder / self.annotation
        rows = read_rows(path, r"(n\d{8})\s+(?!\d+\W*\s)([^,\"]+)", "n01440764 tench", lambda wnid, name: (wnid, name))
        names = dict(sorted(rows))
        if len(names) < len(rows):
            (twice, _), *_ = Counter(wnid for wnid, _ in rows).most_common(1)
            raise UserError(f"'{path}' names the class folder '{twice}' twice")
        return names

    def list_part(self, folder: Path, part: str = "") -> Listing:
        """The class folders in the image folder, or in its folder ``part``."""
        return list_classes_once(folder / self.image_dir / part, folder, f"listing{part and '_' + part}.json")

    def label(self, listing: Listing, names: Mapping[str, str], prefix: str = "") -> list[Item]:
        """Labels number the existing folders in sorted order."""
        if unnamed := [name for name in listing if name not in names]:
            shown = ", ".join(f"'{name}'" for name in unnamed[:3])
            raise UserError(f"{self.dataset_dir}: {len(unnamed)} class folders are not in classnames.txt: {shown}")
        items: list[Item] = []
        for label, (folder, files) in enumerate(listing.items()):
            path, name = f"{prefix}{folder}/", names[folder]
            items += [Item(path + file, label, name) for file in files]
        return items


@DATASET_REGISTRY.register()
class ImageNet(ImageNetFolders):
    dataset_dir = "imagenet"
    image_parts = ("train", "val")
    other_names = ("ILSVRC2012", "imagenet-1k")
    validate_on_train = True

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        names = self.read_names(folder)
        train, val = self.list_part(folder, "train"), self.list_part(folder, "val")
        if odd := sorted(train.keys() ^ val.keys()):
            raise UserError(
                f"'{folder / self.image_dir}': train and val should have the same class folders; "
                f"{len(odd)} are in one of them only, '{odd[0]}' the first"
            )
        if len(train) < len(names):
            print(f"ImageNet: {len(names) - len(train)} of the {len(names)} classes of classnames.txt have no folder")
        return Split(self.label(train, names, "train/"), [], self.label(val, names, "val/"))


class ImageNetVariant(ImageNetFolders):
    test_only = True

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return Split([], [], self.label(self.list_part(folder), self.read_names(folder)))


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def label(self, listing: Listing, names: Mapping[str, str], prefix: str = "") -> list[Item]:
        """Folder 0 is the first class of classnames.txt, sorted, and so on."""
        if odd := sorted(listing.keys() ^ set(map(str, range(len(names)))), key=lambda name: (len(name), name)):
            raise UserError(
                f"'{self.image_dir}' should have the folders 0 to {len(names) - 1}, one for each line of "
                f"classnames.txt; {len(odd)} are missing or have no line, '{odd[0]}' the first"
            )
        return [
            Item(f"{label}/{file}", label, name)
            for label, name in enumerate(names.values())
            for file in listing[str(label)]
        ]


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    dataset_dir = "imagenet-sketch"
    other_names = ("sketch",)


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    other_names = ("imagenet-a",)


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    other_names = ("imagenet-r",)
