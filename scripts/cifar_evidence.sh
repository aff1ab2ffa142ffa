#!/usr/bin/env bash
# The CIFAR-10 comparison of results/cifar10: AST-GC against the same without correction, against each sub-net trained alone,
# and against dense, all for the same steps. Stopped runs are continued where they were. The figures in results/ were made with
# OMP_NUM_THREADS=1.
#     scripts/cifar_evidence.sh DATA_DIR [RUNS_DIR]
set -euo pipefail
source "$(dirname "$0")/evidence_lib.sh"
begin cifar10 "$@"

long=(--model resnet20 --subset 20000 --epochs 6 --eval-every 6 --channels-last true)
short=(--model resnet20 --subset 5000 --epochs 6 --eval-every 6 --channels-last true)
several=0.9,0.95,0.98

for seed in 0 1 2; do
    run "ast-gc-seed$seed"    ast-gc "${long[@]}" --sparsity "$several" --seed "$seed"
    run "ast-no-gc-seed$seed" ast-gc "${long[@]}" --sparsity "$several" --seed "$seed" --gc false
done
run dense-seed0         dense  "${long[@]}"
for sparsity in 0.9 0.95 0.98; do
    run "alone-$sparsity-seed0" ast-gc "${long[@]}" --sparsity "$sparsity"
done
for seed in 0 1 2; do
    run "short-ast-gc-seed$seed"    ast-gc "${short[@]}" --sparsity "$several" --seed "$seed"
    run "short-ast-no-gc-seed$seed" ast-gc "${short[@]}" --sparsity "$several" --seed "$seed" --gc false
done
.venv/bin/python scripts/evidence_table.py results/cifar10 > results/cifar10.md
