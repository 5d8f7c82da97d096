"""Experiments of many runs: jobs, compare, protocols, tables, figures, sweeps, pictures, pretraining."""

import dassl  # noqa: F401 -- before torch
