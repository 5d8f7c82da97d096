#!/usr/bin/env bash
# Tip-Adapter-F, trained and tested: bash scripts/tip_adapter_f/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" TipAdapterF "$@"
