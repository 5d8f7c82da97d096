"""What the papers' tables are made of: datasets, shots, shifted sets, and which methods are set against which."""

from collections.abc import Iterable

from trainers.method import methods

ROLES = {kind.role: name for name, kind in reversed(methods().items()) if kind.role}  # the first that has a role
SUBJECT = ROLES["subject"]  # tables test it against each other method
BASELINE = ROLES["baseline"]  # comparisons show each method's difference to it
ADAPTERS = tuple(name for name, kind in methods().items() if kind.role == "adapter")  # the table of adapters
# In the table of base to new beside the compared methods.
BASE_TO_NEW = tuple(name for name, kind in methods().items() if kind.role == "base-to-new")
DATASETS = (
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "imagenet",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
)
SHOTS = (1, 2, 4, 8, 16)
SHIFTED = {
    "imagenet": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
    "symbols": ("symbols_layout", "symbols_outline", "symbols_occlusion", "symbols_texture"),
}
FEWER_CLASSES = ("imagenet_a", "imagenet_r")  # the other shifted sets have all classes of their source


def has_same_classes(source: str, targets: Iterable[str]) -> bool:
    return {*targets} <= {source, *SHIFTED.get(source, ())} - {*FEWER_CLASSES}
