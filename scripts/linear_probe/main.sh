#!/usr/bin/env bash
# Linear probe, fitted and tested: bash scripts/linear_probe/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" LinearProbe "$@"
