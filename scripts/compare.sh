#!/usr/bin/env bash
# The methods side by side: bash scripts/compare.sh DATASET SHOTS [KEY VALUE]...
# Environment as for main.sh, and TRAINERS ("plot coop", or all). CFG may be a backbone's name (rn50, vit_b16):
# each method then takes its own config on it. Finished runs are kept.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/python.sh" -m experiments.compare "$@"
