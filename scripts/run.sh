#!/usr/bin/env bash
# A method, trained and tested: bash scripts/run.sh [--import FILE] TRAINER DATASET SHOTS [KEY VALUE]...
# From the environment: DATA (data), OUT (output), SEEDS ("1 2 3"), CFG or BACKBONE (by the recipe), N (prompts a class).
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
exec bash "$(dirname "${BASH_SOURCE[0]}")/python.sh" -m experiments.jobs "$@"
