"""A cache of a frozen encoder's image features on disk: a test set is encoded once, not once a run.

``store`` writes and reads the files. ``loader`` makes batches. ``python -m dassl.features`` shows and removes files.
"""

from .loader import with_features, with_views
from .store import FeatureStore

__all__ = ["FeatureStore", "with_features", "with_views"]
