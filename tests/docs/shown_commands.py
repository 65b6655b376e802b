"""What the pages show between fences, and which of it cannot be run by a test, with the reason."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

_INSTALLS = "installs, into an environment of its own"
_SCRIPT = "makes an environment of its own and takes minutes; its steps are commands of blocks that run"
_CLUSTER = "needs several GPUs or machines; tests/integration has the same launches with two processes of the CPU"
_DEVICE = "needs this device; tests/devices has stand-ins for it"
_HUB = "downloads a model of gigabytes"
_LONG = "takes minutes to hours"

NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "bash tools/quickstart.sh"): _SCRIPT,
    ("README.md", "bash tools/test.sh"): "is what runs these tests",
    ("README.md", "xrlhf train own_data_reward"): _HUB,
    ("README.md", "NPROC_PER_NODE=8"): _CLUSTER,
    ("README.md", "sbatch"): _CLUSTER,
    ("README.md", "xrlhf convert pth_to_hf own_data_reward"): _HUB,
    ("architectures.md", "python tools/architecture_table.py"): _LONG,
    ("clusters.md", ""): _CLUSTER,
    ("data.md", "python tools/cross_validate.py"): _LONG,
    ("devices.md", "xrlhf train tiny_reward_cpu --device xpu"): _DEVICE,
    ("devices.md", "xrlhf score my_reward_model --data answers.jsonl --out scored.jsonl --device cuda"): _DEVICE,
    ("devices.md", "python tools/smoke.py --device cuda"): _DEVICE,
    ("devices.md", "pip install"): _INSTALLS,
    ("devices.md", "xrlhf train own_data_reward --device ipex"): _DEVICE,
    ("devices.md", "mpirun"): _CLUSTER,
    ("evaluation.md", "xrlhf eval model_a --data reward-bench-2.parquet"): (
        "needs published benchmarks; tests/evaluation has files of their layouts"
    ),
    ("generate.md", "xrlhf generate my_policy --prompts questions.jsonl --k 8 --out answers.jsonl --server"): (
        "needs vLLM servers; tests/cli/test_generate.py has a stand-in"
    ),
    ("objectives.md", "python tools/compare_objectives.py"): _LONG,
    ("performance.md", ""): _LONG,
    ("policies.md", "xrlhf train tiny_sft_hh_cpu"): _LONG,
    ("policies.md", "xrlhf convert pth_to_hf tiny_sft_hh_cpu"): _LONG,
    ("policies.md", "xrlhf train tiny_dpo_hh_cpu"): _LONG,
    ("ppo.md", "xrlhf train qwen3_1_7b_grpo_gsm8k"): "asks the hub for a config; tests/engine/plan has the same plan",
    ("recipes.md", "xrlhf train my_recipe.py"): _HUB,
    ("recipes.md", "pip install"): _INSTALLS,
    ("recipes.md", "XRLHF_HUB=modelscope"): _HUB,
    ("results.md", "bash tools/quickstart.sh"): _SCRIPT,
    ("results.md", ""): _LONG,
    ("runs.md", "NPROC_PER_NODE=8"): _CLUSTER,
    ("scaling.md", "xrlhf train llama3_8b_reward"): "asks the hub for a config; tests/cli/test_plan.py plans without",
    ("scaling.md", "python tools/bench/scaling.py"): _LONG,
    ("serving.md", "xrlhf serve my_reward_model"): "runs until it is told to end; the block below it does that",
    ("serving.md", "python tools/bench/"): _LONG,
    ("start.md", "bash tools/quickstart.sh"): _SCRIPT,
    ("start.md", "python3 -m venv"): _INSTALLS,
    ("start.md", "pip install"): _INSTALLS,
}
"""Why a line between ``console`` fences is not run, by its page and its beginning; the longest beginning counts."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced texts of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return [body for found, body in _FENCE.findall(text) if found == language]


def pages_with(language: str) -> list[Path]:
    """The pages that have such texts."""
    return [page for page in PAGES if blocks(page, language)]


def console_commands() -> list[tuple[str, str]]:
    """Every command line between ``console`` fences, with its page."""
    return [
        (page.name, line.split("  #")[0].strip())
        for page in pages_with("console")
        for body in blocks(page, "console")
        for line in body.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def reason_not_to_run(page: str, line: str) -> tuple[str, str] | None:
    """The entry of ``NOT_RUN`` that is about a command; None for one that is run."""
    fitting = [entry for entry in NOT_RUN if entry[0] == page and line.startswith(entry[1])]
    return max(fitting, key=lambda entry: len(entry[1]), default=None)
