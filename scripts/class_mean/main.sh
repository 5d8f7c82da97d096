#!/usr/bin/env bash
# Nearest class mean, fitted and tested: bash scripts/class_mean/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" NearestClassMean "$@"
