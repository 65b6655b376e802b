#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them all: style, types, documentation, tests.
# Usage: bash tools/test.sh [PYTEST ARGUMENT...]      e.g.  bash tools/test.sh tests/losses -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/install.sh dev

bin=$PWD/${VENV:-.venv}/bin
[[ ${VENV:-} == /* ]] && bin=$VENV/bin
export PATH=$bin:$PATH
# No test may reach for a model hub.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

if [[ $# -gt 0 ]]; then
    exec python -m pytest "$@"
fi

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== documentation"
python -m sphinx -q -W --keep-going -b html docs docs/_build/html
echo "== tests"
# One worker a core, each with one thread: tests that start processes would otherwise fight over the cores.
OMP_NUM_THREADS=1 python -m pytest -n "$(nproc)" --dist loadfile --durations 15 -q
