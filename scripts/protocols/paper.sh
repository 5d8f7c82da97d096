#!/usr/bin/env bash
# The runs behind every table and figure of the paper, on one dataset, then all of them, printed and in OUT/tables/:
# bash scripts/protocols/paper.sh DATASET [--full]; one seed, 1 and 16 shots; --full: three seeds, 1 2 4 8 16 shots.
# DATA, OUT and SEEDS from the environment. Finished runs are kept.
export PLOT_COMMAND=${PLOT_COMMAND:-$(printf '%q ' bash "$0" "$@")}
set -euo pipefail
mistake() { echo "error: $1; bash scripts/protocols/paper.sh DATASET [--full]" >&2; exit 2; }
case ${1:-} in
  "") mistake "DATASET is missing" ;;
  -h | --help) sed -n '2,4s/^# //p' "$0"; exit ;;
  -*) mistake "'$1' is no dataset" ;;
esac
dataset=$1
case ${2:-} in
  "") shots="1 16"; export SEEDS=${SEEDS:-1} ;;
  --full) shots="1 2 4 8 16"; export SEEDS=${SEEDS:-1 2 3} ;;
  *) mistake "'$2' is no option" ;;
esac
[ $# -le 2 ] || mistake "'$3' is one argument too many"
export OUT=${OUT:-output} DATA=${DATA:-data}
[[ $OUT = /* ]] || OUT=$PWD/$OUT
[[ $DATA = /* ]] || DATA=$PWD/$DATA
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python() { bash scripts/python.sh "$@"; }
tables=(-m experiments.tables all --dataset "$dataset" --shots $shots)

commands=$(python "${tables[@]}" --commands)
while IFS= read -r command; do
  [ -z "$command" ] || { printf '\n$ %s\n' "$command"; bash -c "$command" </dev/null; }
done <<<"$commands"
# Figure 3 has the linear probe; tables and figures show it where it has runs.
TRAINERS=linear_probe bash scripts/protocols/few_shot.sh "$dataset" "$shots"

python "${tables[@]}"
python -m experiments.figures --dataset "$dataset" --shots $shots
run=$(ls -d "$OUT/$dataset"/PLOT/*_16shots/n4_nctx16_cscFalse_ctpend/seed"${SEEDS%% *}" | head -n1)
# By the dataset itself: some are in the cache folder, and their folders have names of their own.
first='import sys, datasets.get.checks as c; print(c.load(c.registered(sys.argv[1]), sys.argv[2])["test"][0][0])'
image=$(python -c "$first" "$dataset" "$DATA" | tail -n1)
python -m experiments.pictures.visualize "$run" "$image"
python -m experiments.pictures.words "$run"
python -m experiments.pictures.tsne "$run" "$(dirname "$image")" --to "$OUT/tables/tsne_$dataset.png"
