#!/usr/bin/env bash
# From nothing to a reward model that plain transformers loads: installs into .venv, trains a tiny model on the
# built-in practice data, evaluates it on held-out groups, converts it, and scores two conversations with it.
# Usage: bash tools/quickstart.sh [DIRECTORY]      (default: work_dirs/quickstart; made anew each time)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/install.sh

out=${1:-work_dirs/quickstart}
xrlhf=${VENV:-.venv}/bin/xrlhf
python=${VENV:-.venv}/bin/python
# Nothing here needs a model hub.
export HF_HUB_OFFLINE=1

if [[ -e $out && ! -e $out/quickstart.log ]]; then
    echo "error: $out exists and is not from a quick start: name another directory" >&2
    exit 2
fi
rm -rf "$out"
mkdir -p "$out"
log=$out/quickstart.log

step() { # what, then the command; its output goes to the log
    local what=$1 began=$SECONDS
    shift
    printf '%-52s' "$what"
    if ! "$@" >>"$log" 2>&1; then
        echo "failed; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    printf '%4d s\n' $((SECONDS - began))
}

step "1 train   configs/tiny_reward_cpu.py" "$xrlhf" train configs/tiny_reward_cpu.py --work-dir "$out/run"
checkpoint=$out/run/$(cat "$out/run/last_checkpoint")
step "2 test    held-out groups" \
    "$xrlhf" test configs/tiny_reward_cpu.py --checkpoint "$checkpoint" --out "$out/metrics.json"
step "3 convert to a Hugging Face directory" \
    "$xrlhf" convert pth_to_hf configs/tiny_reward_cpu.py "$checkpoint" "$out/reward_model"
step "4 score   two conversations with transformers" \
    "$python" tools/score_with_transformers.py "$out/reward_model" "$out/scores.json"
"$python" tools/quickstart_table.py "$out"
