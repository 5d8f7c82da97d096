"""Importing this package registers every dataset."""

import dassl  # noqa: F401 -- before torch

from . import (  # noqa: F401
    caltech101,
    dtd,
    eurosat,
    fgvc_aircraft,
    food101,
    image_folder,
    imagenet,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    symbols,
    ucf101,
)
