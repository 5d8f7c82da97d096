#!/usr/bin/env bash
# All GPU measurements in at most eight minutes: bash benchmarks/on_gpu.sh [--dry-run] [FOLDER]
# Each part writes FOLDER/<part>.txt (default: $OUT, else output/gpu), those that measure FOLDER/<part>.json as well. A part that fails or exceeds its seconds does not
# stop the others; the last line says which parts passed. --dry-run prints the commands.
# Exit code: 0, 1 if a part failed, 2 without a GPU.
set -uo pipefail

dry=
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
folder=$(realpath -m "${1:-${OUT:-output/gpu}}")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
passed=() failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2 code
    shift 2
    echo "== $name: timeout $seconds$(printf ' %q' "$@")"
    [ -z "$dry" ] || return 0
    timeout --kill-after=5 "$seconds" "$@" >"$folder/$name.txt" 2>&1 </dev/null
    code=$?
    cat "$folder/$name.txt"
    if [ $code = 0 ]; then passed+=("$name"); else failed+=("$name ($code)"); fi
}

measure() { # NAME SECONDS MODULE OPTION...
    part "$1" "$2" bash scripts/python.sh -m "benchmarks.$3" --json "$folder/$1.json" "${@:4}"
}

step() { # NAME SECONDS OPTION...
    measure "$1" "$2" step --device cuda --repeats 3 "${@:3}"
}

if [ -z "$dry" ]; then
    gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null) ||
        { echo "error: nvidia-smi finds no GPU here" >&2; exit 2; }
    echo "GPU and driver: $gpu"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    export OUT=$work/output DATA=${DATA:-$work/data}
    mkdir -p "$folder"
fi
part versions 15 bash scripts/python.sh -c \
    'import platform, torch; print(torch.cuda.get_device_name(), platform.python_version(), torch.__version__, torch.version.cuda)'
step step_fp16 95 --prec fp16 --batch 32 --cocoop-batch 8 --parts --fused --whole
step imagenet_fp16 40 --prec fp16 --batch 32 --trainers PLOT COOP --classes 1000 --no-plain --fused --whole
part cuda_tests 70 bash scripts/python.sh -m pytest -m gpu tests/trainers/test_cuda.py
part symbols 55 bash scripts/plot/main.sh symbols 16
measure image_loading 30 image_loading --workers 0 4 8 16
step step_fp16_batch_8 40 --prec fp16 --trainers PLOT COOP --fused --whole
measure several_runs 75 engines --at-once 1 2 4 8 --runs 8 --shots 1 OPTIM.MAX_EPOCH 2
part grid 10 bash scripts/python.sh -m benchmarks.grid \
    "$folder"/{step_fp16,imagenet_fp16,step_fp16_batch_8,image_loading}.json
[ -z "$dry" ] || exit 0
echo "passed: ${passed[*]:-none}; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
