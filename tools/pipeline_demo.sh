#!/usr/bin/env bash
# The whole pipeline on the built-in practice data: supervised fine-tuning, a reward model, PPO against that reward model,
# and how good the answers are before and after, by the reward model and by the rule it has never seen.
# Usage: bash tools/pipeline_demo.sh [DIRECTORY]      (default: work_dirs/pipeline; made anew each time)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/install.sh
source tools/steps.sh
xrlhf=${VENV:-.venv}/bin/xrlhf
python=${VENV:-.venv}/bin/python
# Nothing here needs a model hub.
export HF_HUB_OFFLINE=1
fresh_folder "${1:-work_dirs/pipeline}" pipeline.log

newest() { # a run's directory: its last checkpoint
    echo "$1/$(cat "$1/last_checkpoint")"
}

step "1 fine-tune      configs/tiny_sft_cpu.py" "$xrlhf" train configs/tiny_sft_cpu.py --work-dir "$out/sft"
step "  convert" "$xrlhf" convert pth_to_hf configs/tiny_sft_cpu.py "$(newest "$out/sft")" "$out/sft_hf"
step "2 reward model   configs/tiny_reward_cpu.py" "$xrlhf" train configs/tiny_reward_cpu.py --work-dir "$out/reward"
step "  convert" "$xrlhf" convert pth_to_hf configs/tiny_reward_cpu.py "$(newest "$out/reward")" "$out/reward_hf"
# The rule is watched with weight 0: the policy learns from the reward model alone.
step "3 PPO            configs/tiny_ppo_cpu.py" \
    "$xrlhf" train configs/tiny_ppo_cpu.py --work-dir "$out/ppo" --cfg-options \
    pretrained_model_name_or_path="$out/sft_hf" max_rollouts=50 train_cfg.val_interval=40 kl_target=5.0 \
    "rewards=[{'type': 'RewardModelReward', 'path': '$out/reward_hf'}, {'type': 'PracticeReward', 'weight': 0.0}]"
step "  convert" "$xrlhf" convert pth_to_hf configs/tiny_ppo_cpu.py "$(newest "$out/ppo")" "$out/policy_hf" \
    --cfg-options pretrained_model_name_or_path="$out/sft_hf"
step "4 report         curves of all three" \
    "$xrlhf" report "$out/sft" "$out/reward" "$out/ppo" --out "$out/report.html"
"$python" tools/pipeline_table.py "$out"
