#!/usr/bin/env bash
# PLOT's plan on hand-written prompts, tested: bash scripts/zsplot/main.sh DATASET [SHOTS] [KEY VALUE]...; nothing is learned, so that
# SHOTS and SEEDS do not matter.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" ZeroshotPLOT "$@"
