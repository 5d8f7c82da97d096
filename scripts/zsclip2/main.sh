#!/usr/bin/env bash
# Zero-shot CLIP with an ensemble of prompts, tested: bash scripts/zsclip2/main.sh DATASET [SHOTS] [KEY VALUE]...; nothing is learned, so that
# SHOTS and SEEDS do not matter.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" ZeroshotCLIP2 "$@"
