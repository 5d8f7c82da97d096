#!/usr/bin/env bash
# Runs the project's Python, wherever it is called from: python.sh -m MODULE ARGUMENT...
# $PYTHON, else the one of .venv, else the system's.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || [ ! -x "$here/.venv/bin/python" ] || python=$here/.venv/bin/python
# What was typed: it is said to go on with, if the program is interrupted. Each script sets it, and the first wins.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$@"
