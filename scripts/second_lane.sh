#!/usr/bin/env bash
# Builds and tests the ops against another torch, in a copy of the tree with a venv of its own:
#     scripts/second_lane.sh torch==2.13.0
# A copy, because an extension built in place against one torch must not be picked up by another.
set -euo pipefail
torch=${1:?usage: second_lane.sh torch==VERSION}
cd "$(dirname "$0")/.."
lane=$(mktemp -d)
trap 'rm -rf "$lane"' EXIT
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$lane"
cd "$lane"
"${PYTHON:-python3}" -m venv .venv
grep -E '^(numpy|setuptools|ninja|pytest|pytest-timeout|pytest-benchmark|hypothesis)==' constraints.txt > .venv/constraints.txt
echo "$torch" >> .venv/constraints.txt
.venv/bin/pip install -q -c .venv/constraints.txt torch numpy setuptools ninja
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a} .venv/bin/pip install -q -c .venv/constraints.txt -e '.[test]'
.venv/bin/python -c "import sparsekern._native as n; print(n.native); assert n.native.available, n.native.reason"
.venv/bin/pytest -q -p no:cacheprovider tests/test_*.py
