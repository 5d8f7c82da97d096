#!/usr/bin/env bash
# CoOp, trained and tested: bash scripts/coop/main.sh DATASET SHOTS [KEY VALUE]...; scripts/run.sh has the rest.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" CoOp "$@"
