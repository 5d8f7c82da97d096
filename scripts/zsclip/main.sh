#!/usr/bin/env bash
# Zero-shot CLIP, tested: bash scripts/zsclip/main.sh DATASET [SHOTS] [KEY VALUE]...; nothing is learned, so that
# SHOTS, taken for the sake of one command line for all methods, and SEEDS do not matter.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" ZeroshotCLIP "$@"
