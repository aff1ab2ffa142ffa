# make demo | test | bench: each makes .venv, installs what it needs, builds, runs. make gpu takes a machine as it is. Nothing else to know.
PYTHON ?= python3
TORCH  ?= torch==2.15.0
BIN    := .venv/bin
SOURCES := setup.py pyproject.toml $(wildcard _build_backend/* csrc/*/*)

GPU_STAGES := gpu-build gpu-test gpu-sanitize gpu-bench gpu-train

.PHONY: demo test bench gpu $(GPU_STAGES) lint clean
.DELETE_ON_ERROR:

demo: .venv/train.stamp                    ## train several sparse sub-nets on real digits, write runs/demo/report.html
	$(BIN)/sparsekern train ast-gc --config examples/demo.yaml --out runs/demo --overwrite

test: .venv/test.stamp                     ## everything that runs without a GPU
	$(BIN)/pytest

bench: .venv/test.stamp                    ## latency of every op beside its peers; on a machine with a GPU there, too
	OMP_WAIT_POLICY=passive $(BIN)/pytest --benchmark --benchmark-report runs/ops.json
	$(BIN)/python benchmarks/report.py runs/ops.json --html runs/ops.html > runs/ops.md

gpu:                                       ## with an NVIDIA GPU, torch and nvcc installed (PYTHON= names the python): build, test, sanitize, measure, train
	$(PYTHON) scripts/gpu.py

$(GPU_STAGES):                             ## one stage of it, in less than 9 minutes
	$(PYTHON) scripts/gpu.py $(@:gpu-%=%)

lint: .venv/test.stamp
	$(BIN)/ruff check .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

# First what the build must see, since it compiles against the torch that is there; then the package with its extras.
.venv/base.stamp: constraints.txt
	$(PYTHON) -m venv .venv
	grep -vE '^torch==' constraints.txt > .venv/constraints.txt
	echo '$(TORCH)' >> .venv/constraints.txt
	$(BIN)/pip install -q -c .venv/constraints.txt torch numpy setuptools ninja
	touch $@

.venv/train.stamp: .venv/base.stamp $(SOURCES)
	$(BIN)/pip install -q -c .venv/constraints.txt -e '.[train]'
	touch $@

.venv/test.stamp: .venv/base.stamp $(SOURCES)
	$(BIN)/pip install -q -c .venv/constraints.txt -e '.[dev,models]'
	touch $@

clean:
	rm -rf .venv build runs sparsekern/_C*.so sparsekern/_build.json
