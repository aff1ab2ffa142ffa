# What the evidence scripts share; sourced by them. Stopped runs are continued where they were.

begin() {                                 # begin TOPIC "$@": reads DATA_DIR [RUNS_DIR], goes to the top of the checkout; results/TOPIC takes the reports
    local topic=$1
    data=${2:?usage: $(basename "$0") DATA_DIR [RUNS_DIR]}
    runs=${3:-runs/$topic}
    results=results/$topic
    cd "$(dirname "$0")/.."
    mkdir -p "$runs" "$results"
}

run() {                                   # run NAME ALGORITHM OPTIONS...
    local name=$1 algorithm=$2
    shift 2
    if [ ! -f "$runs/$name/report.json" ]; then
        local resume=()
        [ -d "$runs/$name" ] && resume=(--resume)
        .venv/bin/sparsekern train "$algorithm" --data cifar10 --data-dir "$data" --progress plain --out "$runs/$name" "$@" "${resume[@]}"
    fi
    sed 's#"data_dir": "[^"]*"#"data_dir": "DATA_DIR"#' "$runs/$name/report.json" > "$results/$name.json"      # a path of one machine says nothing
}

measure() {                               # measure NAME OPTIONS...: the report of a run's bank, best made on a quiet machine
    local name=$1
    shift
    if [ ! -f "$runs/$name/bank.report.json" ]; then
        local resume=()
        [ -f "$runs/$name/bank.report.json.partial" ] && resume=(--resume)
        .venv/bin/sparsekern report "$runs/$name/bank.safetensors" --progress plain "$@" "${resume[@]}"
    fi
    cp "$runs/$name/bank.report.json" "$results/$name.bank.report.json"
}
