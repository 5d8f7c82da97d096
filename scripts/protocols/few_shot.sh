#!/usr/bin/env bash
# Trained and tested at each number of shots, SHOTS being one or several ("1 2 4 8 16"):
# bash scripts/protocols/few_shot.sh DATASET SHOTS [KEY VALUE]...; environment as for compare.sh. A test trains nothing.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../python.sh" -m experiments.protocols few_shot "$@"
