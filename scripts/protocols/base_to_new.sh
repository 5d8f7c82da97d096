#!/usr/bin/env bash
# Trained on the first half of the classes, tested on both halves, with their harmonic mean:
# bash scripts/protocols/base_to_new.sh DATASET SHOTS [KEY VALUE]...; environment as for compare.sh. A test trains nothing.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../python.sh" -m experiments.protocols base_to_new "$@"
