#!/usr/bin/env bash
# Linear probe, fitted and tested: bash scripts/linear_probe/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" LinearProbe "$@"
