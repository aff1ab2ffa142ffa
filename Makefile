# make demo | test | bench | gpu: each makes .venv, installs what it needs, builds, runs. Nothing else to know.
PYTHON ?= python3
TORCH  ?= torch==2.15.0
BIN    := .venv/bin
SOURCES := setup.py pyproject.toml $(wildcard _build_backend/* csrc/*/*)

.PHONY: demo test bench gpu lint clean
.DELETE_ON_ERROR:

demo: .venv/train.stamp                    ## train several sparse sub-nets on real digits, write runs/demo/report.html
	$(BIN)/sparsekern train ast-gc --config examples/demo.yaml --out runs/demo --overwrite

test: .venv/test.stamp                     ## everything that runs without a GPU
	$(BIN)/pytest

bench: .venv/test.stamp                    ## latency of every op beside its peers
	OMP_WAIT_POLICY=passive $(BIN)/pytest --benchmark --benchmark-report runs/cpu-ops.json
	$(BIN)/python benchmarks/report.py runs/cpu-ops.json > runs/cpu-ops.md

gpu:                                       ## on a machine with an NVIDIA GPU and torch installed: build, test, sanitize, measure
	$(PYTHON) scripts/gpu.py

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
