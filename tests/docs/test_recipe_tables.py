"""The tables of docs/recipes.md say what the recipes hold, and leave out no setting of the pipelines they compare."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from xrlhf.config import find_recipe, load_recipe
from xrlhf.config.paths import find, value_at

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
_SECTION = re.compile(r"^### `(\w+)`: .*\n((?:(?!^##).*\n)*)", re.MULTILINE)
_VALUE = re.compile(r"`([\w.]+) = ([^`]+)`")

FLAGS = {
    "opt_350m_reward": (
        "model_name_or_path output_dir per_device_train_batch_size num_train_epochs gradient_accumulation_steps "
        "gradient_checkpointing learning_rate remove_unused_columns optim logging_steps evaluation_strategy max_length"
    ),
    "llama2_7b_reward_lora": (
        "nnodes nproc_per_node model_name_or_path output_dir log_level num_train_epochs logging_steps "
        "per_device_train_batch_size hf_access_token use_habana use_lazy_mode world_size use_mpi "
        "ddp_find_unused_parameters"
    ),
    "llama2_7b_sft_lora": (
        "nnodes nproc_per_node model_name_or_path bf16 dataset_name dataset_concatenation per_device_train_batch_size "
        "per_device_eval_batch_size gradient_accumulation_steps evaluation_strategy save_strategy save_steps "
        "save_total_limit learning_rate logging_steps do_train num_train_epochs overwrite_output_dir log_level "
        "output_dir peft use_fast_tokenizer use_auth_token world_size use_mpi device use_habana use_lazy_mode "
        "adapter_model_name output_name"
    ),
    "llama2_7b_ppo_lora": (
        "multi_gpu num_machines num_processes log_with model_name reward_model_name adafactor tokenizer_name save_freq "
        "output_max_length batch_size mini_batch_size gradient_accumulation_steps batched_gen ppo_epochs seed "
        "learning_rate early_stopping output_dir hf_access_token use_habana world_size use_mpi"
    ),
    "gemma_2b_reward": "model_name max_length train_set_path deepspeed",
}
"""The options of the command lines that the pipelines show."""


def sections() -> dict[str, str]:
    return dict(_SECTION.findall(PAGE.read_text(encoding="utf-8")))


def stated(text: str) -> list[tuple[str, Any]]:
    """What the middle column of a section's tables says of the recipe."""
    middles = [cells(line)[1] for line in text.splitlines() if line.startswith("| ")]
    # A pipe inside a table is escaped.
    found = [pair for middle in middles for pair in _VALUE.findall(middle.replace(r"\|", "|"))]
    return [(path, ast.literal_eval(value)) for path, value in found]


def cells(line: str) -> list[str]:
    return line.strip("|").split(" | ")


def test_there_is_a_section_for_every_recipe_of_a_pipeline() -> None:
    assert set(sections()) == {
        "opt_350m_reward",
        "llama2_7b_sft_lora",
        "llama2_7b_reward_lora",
        "llama2_7b_ppo_lora",
        "gemma_2b_reward",
        "llama3_8b_reward",
        "internlm2_1_8b_reward",
        "internlm2_1_8b_reward_varlen",
        "internlm2_1_8b_reward_qlora",
        "internlm2_1_8b_dpo",
    }


@pytest.mark.parametrize("name", sections())
def test_the_recipe_holds_what_the_table_says(name: str) -> None:
    values = load_recipe(find_recipe(name)).to_dict()
    found = stated(sections()[name])
    assert len(found) >= 3
    for path, value in found:
        keys = find(values, tuple(path.split(".")))
        assert keys is not None, f"{name} has no {path}"
        assert value_at(values, keys) == value, path


@pytest.mark.parametrize("name", FLAGS)
def test_every_option_of_the_pipeline_is_there(name: str) -> None:
    text = sections()[name]
    assert [flag for flag in FLAGS[name].split() if not re.search(rf"--{flag}\b", text)] == []


@pytest.mark.parametrize("name", sections())
def test_every_row_has_three_cells(name: str) -> None:
    assert {len(cells(line)) for line in sections()[name].splitlines() if line.startswith("| ")} == {3}
