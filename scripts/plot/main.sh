#!/usr/bin/env bash
# PLOT, trained and tested: bash scripts/plot/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" PLOT "$@"
