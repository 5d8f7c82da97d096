#!/usr/bin/env bash
# The runs behind docs/photographs.md: bash scripts/protocols/photographs.sh [--dry-run]
# CFG=photo on Caltech-101 and EuroSAT. DATA, OUT, SEEDS and JOBS (2) from the environment. Finished runs are kept.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
set -euo pipefail
mistake() { echo "error: $1; bash scripts/protocols/photographs.sh [--dry-run]" >&2; exit 2; }
case ${1:-} in
  "" | --dry-run) ;;
  -h | --help) sed -n '2,3s/^# //p' "$0"; exit ;;
  *) mistake "'$1' is no option" ;;
esac
[ $# -le 1 ] || mistake "'$2' is one argument too many"
export CFG=photo OUT=${OUT:-output} DATA=${DATA:-data}
[[ $OUT = /* ]] || OUT=$PWD/$OUT
[[ $DATA = /* ]] || DATA=$PWD/$DATA
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
dry=${1:-}

# sweep DATASETS SHOTS TRAINERS [KEY VALUE]...
sweep() {
  printf '\n# %s\n' "$*"
  bash scripts/python.sh sweep.py --jobs "${JOBS:-2}" --datasets "$1" --shots "$2" --trainers "$3" ${dry:+"$dry"} "${@:4}"
}
# At 16 shots, and on EuroSAT at 1.
both() {
  sweep caltech101,eurosat 16 "$@"
  sweep eurosat 1 "$@"
}

everything() {
  sweep caltech101,eurosat 1,2,4,8,16 \
    ZeroshotCLIP,ZeroshotCLIP2,ZeroshotPLOT,NearestClassMean,LinearProbe,TipAdapter,TipAdapterF,CoOp,PLOT,PLOTAdapter
  sweep caltech101,eurosat 1,2,4,8,16 PLOT TRAINER.PLOT.MATCH uniform
  sweep eurosat 1,16 CoCoOp,PLOTCoCoOp
  for match in mean max global; do both PLOT TRAINER.PLOT.MATCH $match; done
  for n in 1 2 8; do
    both PLOT TRAINER.PLOT.N $n
    both PLOT TRAINER.PLOT.N $n TRAINER.PLOT.MATCH uniform
  done
  for eps in 0.005 0.02 0.3 1.0; do both PLOT TRAINER.PLOT.EPS $eps; done
  for eps in 0.3 1.0 3.0; do both PLOT TRAINER.PLOT.COST standardized TRAINER.PLOT.EPS $eps; done
}
# A dry run ends with the sum of its sweeps' last rows, which begin with "all".
total() {
  awk -v jobs="${JOBS:-2}" '{ print }
    $1 == "all" { runs += $2; todo += $5; unknown += !sub(/^~/, "", $6); split($6, t, ":"); s += 60 * t[1] + t[2] }
    END {
      hours = unknown ? "in unknown time" : sprintf("in about %.1f hours", s / 60 / jobs)
      printf "\n%d runs, %d to do %s, %d at once\n", runs, todo, hours, jobs
    }'
}
if [ "$dry" ]; then everything | total; else everything; fi
