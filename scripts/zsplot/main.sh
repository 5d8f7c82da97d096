#!/usr/bin/env bash
# PLOT's plan on hand-written prompts, tested: bash scripts/zsplot/main.sh DATASET [SHOTS] [KEY VALUE]...; nothing is learned, so that
# SHOTS and SEEDS do not matter.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" ZeroshotPLOT "$@"
