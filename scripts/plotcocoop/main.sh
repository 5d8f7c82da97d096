#!/usr/bin/env bash
# PLOT on CoCoOp, trained and tested: bash scripts/plotcocoop/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" PLOTCoCoOp "$@"
