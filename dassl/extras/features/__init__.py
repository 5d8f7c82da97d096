"""Image features of a frozen encoder, kept on disk: a test set is encoded once, not once a run.

``store`` keeps them in files, ``loader`` puts them into batches, ``python -m dassl.features`` shows and removes them.
"""

from .loader import with_features, with_views
from .store import FeatureStore

__all__ = ["FeatureStore", "with_features", "with_views"]
