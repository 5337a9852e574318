#!/usr/bin/env bash
# Train SmolLM2-135M-Instruct with GRPO, then with ProGRPO, and evaluate each against the start checkpoint.
# usage: run.sh BIN OUTPUT    BIN: the bin directory of an environment with progrpo[train,smollm2]
set -euo pipefail
if [[ $# -ne 2 ]]; then
    echo "usage: $0 BIN OUTPUT" >&2
    exit 2
fi
mkdir -p "$2"
bin=$1 output=$(cd "$2" && pwd) here=$(dirname "$0")

"$bin/python" "$here/get_checkpoint.py" "$output/checkpoint"
"$bin/python" "$here/make_arithmetic.py" "$output/data"
for arm in grpo progrpo; do
    "$bin/progrpo" run train-and-evaluate --params-file "$here/params.yaml" --output "$output/$arm" --replace \
        --set "checkpoint.uri=$output/checkpoint" \
        --set "dataset.source.train_uri=$output/data/train.jsonl" \
        --set "dataset.source.eval_uri=$output/data/eval.jsonl" \
        --set "arm={name: $arm, algorithm: {type: $arm}}"
done
