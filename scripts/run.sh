#!/usr/bin/env bash
# What the four main.sh have in common: run.sh TRAINER DATASET SHOTS [KEY VALUE]...
# From the environment: DATA (data), OUT (output), SEEDS ("1 2 3"), CFG or BACKBONE (by the recipe), N (4, PLOT only).
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }

trainer=$1
PLOT_COMMAND=$(printf '%q ' bash "$0" "$@") # for python.sh
export PLOT_COMMAND
shift
[ $# -ge 2 ] || fail "usage: bash scripts/<method>/main.sh DATASET SHOTS [KEY VALUE]...; got: ${*:-nothing}"
dataset=$1 shots=$2
shift 2
[[ $shots =~ ^[1-9][0-9]{0,5}$ ]] || fail "SHOTS is '$shots'; it must be a positive integer"

here=$(dirname "${BASH_SOURCE[0]}")
source "$here/recipe.sh"
recipe "$trainer" "$dataset" "$shots"
exec bash "$here/python.sh" -m experiments.jobs \
    --trainer "$trainer" --dataset "$dataset" --shots "$shots" --config "$CFG" --recipe "$RECIPE" "$@"
