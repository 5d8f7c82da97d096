"""Getting a dataset: download, unpack, check."""
