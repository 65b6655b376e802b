from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data.reasons import RowError
from xrlhf.evaluation.benchmarks.llmbar import LLMBAR

ROW = {"input": "Name a fruit.", "output_1": "A brick.", "output_2": "Apple.", "label": 2}
NATURAL = "LLMBar/Dataset/LLMBar/Natural/dataset.json[0]"
NEIGHBOR = "LLMBar/Dataset/LLMBar/Adversarial/Neighbor/dataset.json[0]"


def test_labels_count_from_one() -> None:
    answers = [LLMBAR.read({**ROW, "label": label}, NATURAL).group.responses[0][0]["content"] for label in (1, 2)]  # type: ignore[index]
    assert answers == ["A brick.", "Apple."]


@pytest.mark.parametrize("label", [0, 3, "1", True, None, 1.5])
def test_any_other_label(label: Any) -> None:
    with pytest.raises(RowError, match=r"label is .*; expected 1 or 2"):
        LLMBAR.read({**ROW, "label": label}, NATURAL)


@pytest.mark.parametrize(
    ("location", "subset"),
    [
        (NATURAL, "Natural"),
        (NEIGHBOR, "Neighbor"),
        ("LLMBar/Adversarial/GPTInst/dataset.json[4]", "GPTInst"),
        ("natural/gptout.jsonl:4", "GPTOut"),
        ("manual.json[2]", "Manual"),
    ],
)
def test_the_path_tells_the_subset(location: str, subset: str) -> None:
    assert LLMBAR.read(ROW, location).subset == subset


def test_a_path_that_tells_nothing() -> None:
    with pytest.raises(RowError, match="neither a column subset nor a folder or file name tells the subset"):
        LLMBAR.read(ROW, "dataset.json[0]")
    assert LLMBAR.read({**ROW, "subset": "Natural"}, "dataset.json[0]").subset == "Natural"


def test_scores(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Natural 1 of 1, Neighbor 0 of 2 (one a tie), Manual 1 of 1: adversarial (0 + 1) / 2, all rows 2 of 4."""
    rows = [
        scored(LLMBAR, ROW, [1, 0], NATURAL),
        scored(LLMBAR, {**ROW, "input": "a"}, [0, 1], NEIGHBOR),
        scored(LLMBAR, {**ROW, "input": "b"}, [1, 1], NEIGHBOR),
        scored(LLMBAR, {**ROW, "input": "c"}, [1, 0], "manual.json[0]"),
    ]
    found = named(LLMBAR.results(rows))
    assert (found["Natural"].value, found["Neighbor"].value, found["GPTInst"].value) == (1.0, 0.0, None)
    assert (found["Adversarial"].value, found["all rows"].value) == (0.5, 0.5)
