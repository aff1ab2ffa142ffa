#!/usr/bin/env bash
# The runs of results/cocktail: Sparse Cocktail with three stages on CIFAR-10 in three seeds, what it is without one of its parts, and AST-GC
# for the same number of steps; both banks measured on this machine, one thread. Stopped runs are continued where they were. The figures in
# results/ were made with OMP_NUM_THREADS=1.
#     [SEEDS="0 1 2"] scripts/cocktail_evidence.sh DATA_DIR [RUNS_DIR]
set -euo pipefail
source "$(dirname "$0")/evidence_lib.sh"
begin cocktail "$@"

# Shortcuts that pad with zeros tie all widths of ResNet-20's stages together; those of its variant b can be pruned. 4,500 images train and 500
# are held out: 35 steps an epoch, 6 epochs a stage, the dense one among them. The ladders are steeper than the paper's, so that three stages
# come far enough to be faster.
short=(--model resnet20-b --subset 5000 --holdout 0.1 --epochs 24 --eval-every 6 --threads 1)
cocktail=(--stages 3 --rate 0.6 --channel-rate 0.25 --nm 1:2,2:4,4:8 --rewind-steps 35)

for seed in ${SEEDS:-0 1 2}; do
    run "cocktail-seed$seed" sparse-cocktail "${short[@]}" "${cocktail[@]}" --seed "$seed"
done
run no-rewind-seed0 sparse-cocktail "${short[@]}" "${cocktail[@]}" --rewind false
run ast-gc-seed0    ast-gc          "${short[@]}" --sparsity 0.6,0.84,0.936

# The ablations beside the whole method, in stages of half that length.
half=(--model resnet20-b --subset 5000 --holdout 0.1 --epochs 12 --eval-every 12 --threads 1)
run half-all-seed0            sparse-cocktail "${half[@]}" "${cocktail[@]}"
run half-no-interpolate-seed0 sparse-cocktail "${half[@]}" "${cocktail[@]}" --interpolate false
run half-no-rewind-seed0      sparse-cocktail "${half[@]}" "${cocktail[@]}" --rewind false
run half-no-pivot-seed0       sparse-cocktail "${half[@]}" "${cocktail[@]}" --pivot false
run half-no-umg-seed0         sparse-cocktail "${half[@]}" "${cocktail[@]}" --umg false
run half-no-distill-seed0     sparse-cocktail "${half[@]}" "${cocktail[@]}" --distill false
run half-naive-refill-seed0   sparse-cocktail "${half[@]}" "${cocktail[@]}" --naive-refill true

for name in cocktail-seed0 ast-gc-seed0; do
    measure "$name" --batch 128 --threads 1
done
.venv/bin/python scripts/bank_table.py "$results" --plot results/cocktail.png > results/cocktail.md
