"""Tests; their folders mirror the tree."""

import dassl  # noqa: F401 -- before torch
