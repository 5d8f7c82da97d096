"""Pictures of what a run has learned, and of the embedded dataset."""
