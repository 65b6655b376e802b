"""Prompts: what is read of rows, what is left out, and which of them a rollout holds."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import pytest

from xrlhf.data.map_fns import ranked_map_fn
from xrlhf.data.practice import PracticeSource, practice_tokenizer
from xrlhf.data.prompts import PromptDataset, PromptEvalLoader, PromptLoader, prompt_map_fn
from xrlhf.data.reasons import RowError
from xrlhf.data.sources import MemorySource
from xrlhf.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": "How do I keep bread fresh?", "answer": "wrap"},
    {
        "prompt": [{"role": "system", "content": "You give good advice."}, {"role": "user", "content": "Hello!"}],
        "id": 7,
    },
    {"question": "no prompt here"},
    {"prompt": "How do I make good tea? " * 40},
]


def prompts(rows: list[dict[str, Any]], **options: Any) -> PromptDataset:
    sources = [{"source": MemorySource(rows), "map_fn": prompt_map_fn}]
    given = {"max_length": 40, "max_bad_share": 0.5, **options}
    return PromptDataset(sources, tokenizer=practice_tokenizer(), **given)


def test_what_is_read_and_what_is_left_out() -> None:
    found = prompts(ROWS)
    assert len(found) == 2
    assert found[0].prompt == [{"role": "user", "content": "How do I keep bread fresh?"}]
    assert found[0].meta == {"answer": "wrap"}
    assert found[1].meta == {"id": 7}
    assert found.where(1).endswith("[1]")
    lines = "\n".join(found.report_lines())
    assert "2 of 4 rows became prompts" in lines
    assert "[missing-column]" in lines
    assert "[too-long]" in lines


def test_a_prompt_ends_where_the_answer_begins() -> None:
    found = prompts(ROWS)
    tokenizer = practice_tokenizer()
    text = tokenizer.apply_chat_template(found[0].prompt, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(found[0].ids.tolist()) == text
    assert found.num_tokens().tolist() == [len(found[0].ids), len(found[1].ids)]


def test_any_map_function_gives_prompts_and_folds_split_them() -> None:
    source = PracticeSource(part="train", num_groups=40)
    sources = [{"source": source, "map_fn": ranked_map_fn}]
    tokenizer = practice_tokenizer()
    parts = [
        PromptDataset(sources, tokenizer=tokenizer, max_length=200, fold={"index": 0, "count": 4, "part": part})
        for part in ("train", "held_out")
    ]
    assert len(parts[0]) + len(parts[1]) == 40
    texts = [{str(part[i].prompt) for i in range(len(part))} for part in parts]
    assert not texts[0] & texts[1]
    assert len(PromptDataset(sources, tokenizer=tokenizer, max_length=200, max_prompts=5)) == 5


def test_a_system_message_and_another_column() -> None:
    group = prompt_map_fn({"question": "Why?", "answer": "So."}, prompt="question", system="Be short.")
    assert [message["role"] for message in group.prompt] == ["system", "user"]  # type: ignore[union-attr,index]
    assert group.meta == {"answer": "So."}
    with pytest.raises(RowError, match="column 'prompt' holds no prompt; expected text, or a list of messages"):
        prompt_map_fn({"prompt": 5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_prompts": 0}, "max_prompts must be at least 1, got 0"),
        ({"max_length": 1}, "no row of .* is usable"),
        ({"max_bad_share": 0.0}, "1 of 4 rows of .* do not have the format"),
    ],
)
def test_a_set_that_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prompts(ROWS, **options)
    with pytest.raises(DataError, match=r"^a dataset needs at least one source$"):
        PromptDataset([], tokenizer=practice_tokenizer(), max_length=5)


def test_rollouts_go_through_all_prompts_whatever_the_ranks() -> None:
    dataset = prompts([{"prompt": f"How do I make {number} tea?"} for number in range(10)])
    loader = PromptLoader(dataset, prompts_per_rollout=4, token_budget=100, seed=3)
    other = PromptLoader(dataset, prompts_per_rollout=4, token_budget=50, seed=3, rank=1, world_size=2)
    seen = np.concatenate([loader.prompt_ids(rollout) for rollout in range(5)])
    assert sorted(seen.tolist()) == sorted([*range(10)] * 2)
    np.testing.assert_array_equal(loader.prompt_ids(7), other.prompt_ids(7))
    assert loader.num_rollouts(1.0) == 3
    ranks = [PromptEvalLoader(dataset, rank=rank, world_size=3).prompt_ids.tolist() for rank in range(3)]
    assert sorted(functools.reduce(operator.iadd, ranks, [])) == list(range(10))
    assert len(PromptEvalLoader(dataset)) == 10


@pytest.mark.parametrize("options", [{"prompts_per_rollout": 0}, {"token_budget": 0}])
def test_a_loader_of_nothing(options: dict[str, int]) -> None:
    given = {"prompts_per_rollout": 1, "token_budget": 1, **options}
    with pytest.raises(ConfigError, match=r"^prompts_per_rollout and token_budget must be at least 1, got "):
        PromptLoader(prompts(ROWS), seed=0, **given)
