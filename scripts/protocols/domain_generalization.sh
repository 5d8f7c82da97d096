#!/usr/bin/env bash
# Trained on DATASET (imagenet or symbols), tested on its shifted sets:
# bash scripts/protocols/domain_generalization.sh DATASET SHOTS [KEY VALUE]...; environment as for compare.sh. A test trains nothing.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../python.sh" -m experiments.protocols domain_generalization "$@"
