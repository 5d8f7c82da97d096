#!/usr/bin/env bash
# PLOT-Adapter, trained and tested: bash scripts/plot_adapter/main.sh DATASET SHOTS [KEY VALUE]...; PLOT's runs of the
# same shots and seeds, which it stands on, come first. scripts/run.sh has the rest.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" PLOTAdapter "$@"
