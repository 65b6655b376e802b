#!/usr/bin/env bash
# From nothing to a reward model that plain transformers loads: installs into .venv, trains a tiny model on the
# built-in practice data, evaluates it on held-out groups, converts it, and scores two conversations with it.
# Usage: bash tools/quickstart.sh [DIRECTORY]      (default: work_dirs/quickstart; made anew each time)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/install.sh

source tools/steps.sh
xrlhf=${VENV:-.venv}/bin/xrlhf
python=${VENV:-.venv}/bin/python
# Nothing here needs a model hub.
export HF_HUB_OFFLINE=1
fresh_folder "${1:-work_dirs/quickstart}" quickstart.log

step "1 train   configs/tiny_reward_cpu.py" "$xrlhf" train configs/tiny_reward_cpu.py --work-dir "$out/run"
checkpoint=$out/run/$(cat "$out/run/last_checkpoint")
step "2 test    held-out groups" \
    "$xrlhf" test configs/tiny_reward_cpu.py --checkpoint "$checkpoint" --out "$out/metrics.json"
step "3 convert to a Hugging Face directory" \
    "$xrlhf" convert pth_to_hf configs/tiny_reward_cpu.py "$checkpoint" "$out/reward_model"
step "4 score   two conversations with transformers" \
    "$python" tools/score_with_transformers.py "$out/reward_model" "$out/scores.json"
"$python" tools/quickstart_table.py "$out"
