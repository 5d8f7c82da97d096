#!/usr/bin/env bash
# PLOT++, both stages trained, then tested: bash scripts/plotpp/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has
# the rest. It needs a ViT: BACKBONE=vit_b16 (default) or vit_b32, and on symbols CFG=symbols_vit (default).
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" PLOTPP "$@"
