#!/usr/bin/env bash
# Trained on DATASET, tested on TARGETS (default: the other ten of the paper):
# bash scripts/protocols/cross_dataset.sh DATASET SHOTS [KEY VALUE]...; environment as for compare.sh. A test trains nothing.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../python.sh" -m experiments.protocols cross_dataset "$@"
