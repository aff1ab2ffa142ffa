#!/usr/bin/env bash
# The CIFAR-10 comparison of results/always_sparse: GSE in its three distributions, SET, RigL, a static sparse net and a dense one, on a
# wide MLP and on ResNet-20 at three sparsities, and three seeds on a smaller MLP. All sparse ones start from the same connections, move
# at the same steps and exchange the same shares. Stopped runs are continued where they were; parts: small wide resnet (default: all).
#     scripts/always_sparse_evidence.sh DATA_DIR [RUNS_DIR [PART...]]
set -euo pipefail
data=${1:?usage: always_sparse_evidence.sh DATA_DIR [RUNS_DIR [small|wide|resnet ...]]}
runs=${2:-runs/always_sparse}
parts=${*:3}
cd "$(dirname "$0")/.."

run() {                                   # run NAME ALGORITHM OPTIONS...
    local name=$1 algorithm=$2
    shift 2
    mkdir -p "$runs" results/always_sparse
    if [ ! -f "$runs/$name/report.json" ]; then
        local resume=()
        [ -d "$runs/$name" ] && resume=(--resume)
        .venv/bin/sparsekern train "$algorithm" --data cifar10 --data-dir "$data" --progress plain --out "$runs/$name" "$@" "${resume[@]}"
    fi
    sed 's#"data_dir": "[^"]*"#"data_dir": "DATA_DIR"#; s#"out": "[^"]*"#"out": "RUN"#' "$runs/$name/report.json" \
        > "results/always_sparse/$name.json"
    .venv/bin/python scripts/always_sparse_table.py results/always_sparse > results/always_sparse.md
}

every() {                                 # every NAME SPARSITY SEED OPTIONS...
    local name=$1 sparsity=$2 seed=$3
    shift 3
    local common=("$@" --seed "$seed" --sparsity "$sparsity") moves=(--delta-t "$delta_t" --end "$end" --prune-fraction 0.2)
    for distribution in uniform grabo graest; do
        run "$name-$sparsity-gse-$distribution-seed$seed" gse "${common[@]}" "${moves[@]}" --distribution $distribution
    done
    run "$name-$sparsity-set-seed$seed"    set    "${common[@]}" "${moves[@]}" --storage csr
    run "$name-$sparsity-static-seed$seed" static "${common[@]}" --storage csr
    run "$name-$sparsity-rigl-seed$seed"   rigl   "${common[@]}" "${moves[@]}"
}

delta_t=12 end=562                        # of 936 steps: 46 events up to 0.6 of the run, as in GSE's paper
small=(--model mlp:1024,1024 --subset 20000 --epochs 6 --eval-every 6 --lr 0.02)
wide=(--model mlp:4096,4096 --subset 20000 --epochs 6 --eval-every 6 --lr 0.02)
resnet=(--model resnet20 --subset 20000 --epochs 6 --eval-every 6)

for part in ${parts:-small wide resnet}; do
    case $part in
    small)
        for seed in 0 1 2; do every small 0.95 $seed "${small[@]}"; done
        for seed in 0 1 2; do run "small-0-dense-seed$seed" dense "${small[@]}" --seed $seed; done ;;
    wide)
        for sparsity in 0.98 0.95 0.9; do every wide $sparsity 0 "${wide[@]}"; done
        run wide-0-dense-seed0 dense "${wide[@]}" ;;
    resnet)
        for sparsity in 0.95 0.98 0.9; do every resnet $sparsity 0 "${resnet[@]}"; done
        run resnet-0-dense-seed0 dense "${resnet[@]}" ;;
    *) echo "unknown part $part" >&2; exit 2 ;;
    esac
done
