"""The paper's tables from the ``result.json`` files alone: ``python -m experiments.tables TABLE``."""
