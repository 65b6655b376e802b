"""The table of docs/architectures.md is true, and every exported directory has what other loaders ask for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import CONVERSATION
from transformers import AutoModelForSequenceClassification, pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from architecture_table import ARCHITECTURES, LARGEST_DIFFERENCE, Row, measure, read_table

from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.tokenizer import read_tokenizer
from xrlhf.structures import Group

CONVERSATIONS = [
    CONVERSATION,
    [*CONVERSATION[:1], {"role": "assistant", "content": "No."}],
    [{"role": "system", "content": "Be brief."}, *CONVERSATION],
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, Path]:
    """What the tool finds of an architecture now, and the directory that it exported."""
    folder = tmp_path_factory.mktemp(request.param)
    return measure(request.param, folder), folder / "full"


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_table_has_a_row_for_every_architecture() -> None:
    assert list(read_table()) == list(ARCHITECTURES)


def test_the_row_is_true(measured: tuple[Row, Path]) -> None:
    """Rounding differs from one processor to the next, so the differences are only held below one bound."""
    found, _ = measured
    written = read_table()[found.model_type]
    told = (written.layout, written.exported_as, written.left_padding)
    assert told == (found.layout, found.exported_as, found.left_padding)
    for row in (found, written):
        assert max(row.difference, row.lora_difference) < LARGEST_DIFFERENCE


def test_the_config_is_what_loaders_ask_for(measured: tuple[Row, Path]) -> None:
    row, folder = measured
    config = read(folder / "config.json")
    assert config["architectures"] == [row.exported_as]
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    assert 0 <= config["pad_token_id"] < config["vocab_size"]
    assert config["pad_token_id"] != config["eos_token_id"]
    assert "auto_map" not in config
    assert not list(folder.glob("*.py"))
    rope = config.get("rope_parameters") or {}
    assert ("rope_theta" in config) == any("rope_theta" in part for part in (rope, *filter(_is_dict, rope.values())))


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def test_the_weights_are_all_there_and_the_head_is_one_row(measured: tuple[Row, Path]) -> None:
    _, folder = measured
    _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("score.weight").shape == (1, 32)
    assert "score.bias" not in names


def test_the_tokenizer_is_what_loaders_ask_for(measured: tuple[Row, Path]) -> None:
    _, folder = measured
    config = read(folder / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert "<|reward|>" in config["chat_template"]
    tokenizer = read_tokenizer(str(folder))
    assert set(tokenizer("a", "b")) == {"input_ids", "attention_mask"}
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    ids = tokenizer(text)["input_ids"]
    assert ids == tokenizer.apply_chat_template(CONVERSATION, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.pad_token_id == read(folder / "config.json")["pad_token_id"]


def test_everybody_gives_one_score(measured: tuple[Row, Path]) -> None:
    """Our scorer, the model by itself, the pipeline one by one and in batches, and RewardBench's way of batching."""
    row, folder = measured
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = read_tokenizer(str(folder))
    scored = Scorer.from_pretrained(str(folder)).score([Group(c[:-1], (c[-1:],)) for c in CONVERSATIONS])
    wanted = [result[0] for result in scored if isinstance(result, list)]
    assert max(wanted) - min(wanted) > 1e-3

    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in CONVERSATIONS]
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
        assert alone == pytest.approx(wanted, abs=1e-4)
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
        for options in ({}, {"batch_size": 3}, {"function_to_apply": "none"}):
            assert [item["score"] for item in classify(texts, **options)] == pytest.approx(wanted, abs=1e-4)
        batch = tokenizer(
            texts, padding=True, padding_side="left", truncation=True, max_length=512, return_tensors="pt"
        )
        left = model(**batch).logits[:, 0].tolist()
    assert (left == pytest.approx(wanted, abs=1e-4)) == (row.left_padding == "same scores")
