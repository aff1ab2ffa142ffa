#!/usr/bin/env bash
# The comparison of results/always_sparse: GSE in its three distributions, SET, RigL, Static and dense on CIFAR-10, for equal steps and
# with the same times and shares of exchange. Stopped runs are continued where they were. The figures in results/ were made with
# OMP_NUM_THREADS=1. Time and memory per step are measured by scripts/always_sparse_steps.py.
#     scripts/always_sparse_evidence.sh DATA_DIR [RUNS_DIR]
set -euo pipefail
source "$(dirname "$0")/evidence_lib.sh"
begin always_sparse "$@"

methods() {                               # methods PREFIX SUFFIX STEPS OPTIONS...: all of them, with GSE's times of exchange for each
    local prefix=$1 suffix=$2 steps=$3
    shift 3
    local when=(--delta-t $((steps / 78)) --end $((steps * 6 / 10)) --prune-fraction 0.2)
    for distribution in uniform grabo graest; do
        run "$prefix-gse-$distribution-$suffix" gse "$@" "${when[@]}" --distribution "$distribution"
    done
    run "$prefix-set-$suffix"    set    "$@" "${when[@]}" --storage csr
    run "$prefix-static-$suffix" static "$@" --storage csr
    run "$prefix-rigl-$suffix"   rigl   "$@" "${when[@]}"
}

small=(--model mlp:1024,1024 --subset 20000 --epochs 12 --eval-every 12 --lr 0.05)       # 156 steps an epoch
wide=(--model mlp:4096,4096 --subset 20000 --epochs 4 --eval-every 4 --lr 0.05)
convolutions=(--model resnet20 --subset 10000 --epochs 4 --eval-every 4)                 # 78 steps an epoch

for seed in 0 1 2; do
    methods small "0.95-seed$seed" 1872 "${small[@]}" --sparsity 0.95 --seed "$seed"
    run "small-dense-seed$seed" dense "${small[@]}" --seed "$seed"
done
for sparsity in 0.9 0.95 0.98; do
    methods wide "$sparsity-seed0" 624 "${wide[@]}" --sparsity "$sparsity"
    methods resnet20 "$sparsity-seed0" 312 "${convolutions[@]}" --sparsity "$sparsity"
done
run wide-dense-seed0 dense "${wide[@]}"
run resnet20-dense-seed0 dense "${convolutions[@]}"
.venv/bin/python scripts/always_sparse_table.py "$results" results/always_sparse_steps.json > results/always_sparse.md
