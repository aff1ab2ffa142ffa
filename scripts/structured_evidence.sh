#!/usr/bin/env bash
# The comparison of results/structured: IEE against RigL and Static at 90 %, IEE's ablations, AST-GC's n:m sub-nets and channels under a
# latency, on CIFAR-10 for equal steps. Stopped runs are continued where they were. The latency table is measured first, on a quiet machine.
#     scripts/structured_evidence.sh DATA_DIR [RUNS_DIR]
set -euo pipefail
source "$(dirname "$0")/evidence_lib.sh"
begin structured "$@"

short=(--model resnet20 --subset 5000 --epochs 12 --eval-every 12)                       # 39 steps an epoch, 468 in all; IEE's cycles take 42
cycle=(--h-steps 14 --j-steps 14 --q-steps 14)
sparse=(--sparsity 0.9 --allocation erk)

for seed in 0 1 2; do
    run "iee-seed$seed"    iee    "${short[@]}" "${sparse[@]}" "${cycle[@]}" --seed "$seed"
    run "rigl-seed$seed"   rigl   "${short[@]}" "${sparse[@]}" --delta-t 42 --seed "$seed"
    run "static-seed$seed" static "${short[@]}" "${sparse[@]}" --seed "$seed"
    run "dense-seed$seed"  dense  "${short[@]}" --seed "$seed"
done
mlp=(--model mlp:512,512 --subset 20000 --epochs 20 --eval-every 20 --lr 0.05 --sparsity 0.95 --allocation erk)     # 3120 steps
for seed in 0 1 2; do
    run "mlp-iee-seed$seed"           iee    "${mlp[@]}" --seed "$seed"
    run "mlp-iee-zero-init-seed$seed" iee    "${mlp[@]}" --seed "$seed" --zero-init
    run "mlp-rigl-seed$seed"          rigl   "${mlp[@]}" --delta-t 291 --seed "$seed"
    run "mlp-static-seed$seed"        static "${mlp[@]}" --seed "$seed"
done
for seed in 0 1 2; do                     # what IEE is without one of its parts
    run "iee-no-freeze-seed$seed"    iee "${short[@]}" "${sparse[@]}" "${cycle[@]}" --seed "$seed" --freeze false
    run "iee-no-improve-seed$seed"   iee "${short[@]}" "${sparse[@]}" "${cycle[@]}" --seed "$seed" --accuracy-improvement false
    run "iee-zero-init-seed$seed"    iee "${short[@]}" "${sparse[@]}" "${cycle[@]}" --seed "$seed" --zero-init
    run "iee-random-growth-seed$seed" iee "${short[@]}" "${sparse[@]}" "${cycle[@]}" --seed "$seed" --growth random
    run "iee-j1-q1-seed$seed"        iee "${short[@]}" "${sparse[@]}" --h-steps 40 --j-steps 1 --q-steps 1 --seed "$seed"
done
run ast-gc-nm-seed0 ast-gc "${short[@]}" --pattern nm --nm 2:4,1:4,1:8,1:16
run iee-nm-seed0    iee    "${short[@]}" "${cycle[@]}" --pattern nm --nm 2:4

# Shortcuts that pad with zeros tie all widths of ResNet-20's stages together; those of its variant b can be pruned.
table=$results/resnet20-b-latency.json
[ -f "$table" ] || .venv/bin/sparsekern latency-table --model resnet20-b --data cifar10 --batch 128 --threads 1 --step 4 --max-rounds 3 --out "$table"
channels=(--model resnet20-b --subset 5000 --epochs 12 --eval-every 12 --threads 1)
run dense-b-seed0 dense "${channels[@]}"
run halp-0.55-seed0 halp "${channels[@]}" --latency 0.55 --bundle 4 --table "$table"
for latency in 0.55 0.3; do
    run "iee-channel-$latency-seed0" iee "${channels[@]}" --pattern channel --latency "$latency" --bundle 4 --table "$table" --end 234
done
.venv/bin/python scripts/structured_table.py "$results" > results/structured.md
