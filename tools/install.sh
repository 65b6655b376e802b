#!/usr/bin/env bash
# Makes .venv beside this folder and installs xrlhf into it with the tested versions of tools/constraints.txt.
# Usage: bash tools/install.sh [EXTRA...]      e.g.  bash tools/install.sh dev
# PYTHON names the interpreter (3.10 to 3.13); VENV another place for the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.13.0
python=${PYTHON:-python3}
venv=${VENV:-.venv}
extras=$(IFS=,; echo "$*")

if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: xrlhf needs Python 3.10 to 3.13, and $python is $("$python" --version 2>&1): set PYTHON" >&2
    exit 2
fi

has_accelerator() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1
}

install_torch() {
    if has_accelerator; then
        "$venv/bin/python" -m pip install --quiet "torch==$torch_version"
        return
    fi
    # Without an accelerator the CPU build is enough and a tenth of the size: first where pip already looks, then
    # through uv, which knows where torch keeps its CPU builds, and only then the build that carries CUDA.
    "$venv/bin/python" -m pip install --quiet "torch==$torch_version+cpu" 2>/dev/null && return
    echo "looking for a CPU build of torch"
    "$venv/bin/python" -m pip install --quiet uv 2>/dev/null &&
        timeout 600 "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" \
            --torch-backend cpu "torch==$torch_version" 2>/dev/null && return
    echo "no CPU build of torch found; installing the default one (several GB)"
    "$venv/bin/python" -m pip install --quiet "torch==$torch_version"
}

# The stamp tells what the environment was made from, so that a second run reuses it.
stamp="$venv/.xrlhf-installed-${extras:-base}"
wanted=$(cat setup.py tools/constraints.txt tools/install.sh | cksum)
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
    exit 0
fi

echo "installing into $venv (this takes a few minutes the first time)"
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
"$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$torch_version')" \
    2>/dev/null || install_torch
"$venv/bin/python" -m pip install --quiet --constraint tools/constraints.txt --editable ".${extras:+[$extras]}"
# mmengine needs OpenCV, whose default build needs a library of the desktop that servers often lack.
if ! "$venv/bin/python" -c "import cv2" 2>/dev/null; then
    opencv=$("$venv/bin/python" -c "import importlib.metadata as m; print(m.version('opencv-python'))")
    "$venv/bin/python" -m pip uninstall --quiet --yes opencv-python
    "$venv/bin/python" -m pip install --quiet "opencv-python-headless==$opencv"
fi
echo "$wanted" > "$stamp"
