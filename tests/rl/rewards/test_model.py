"""A reward model as a source of rewards: of another tokenizer than the policy's, and for answers it cannot read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.data.practice import practice_tokenizer
from xrlhf.devices import CpuDevice
from xrlhf.errors import RewardError
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards import RewardModelReward

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny reward model that reads at most 64 tokens, each a byte."""
    folder = tmp_path_factory.mktemp("reward")
    tiny_backbone(seed=7, vocab_size=260, max_position_embeddings=64).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def score_alone(path: str, messages: list[dict[str, str]]) -> float:
    """What plain transformers gives a conversation."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    ids = byte_tokenizer().apply_chat_template(messages, return_dict=False, return_tensors="pt")
    with torch.inference_mode():
        return float(model(ids).logits[0, 0])


def test_scores_are_the_models(reward_model: str, prompt_row: Make, drawn: Make) -> None:
    """Whatever ids the policy had: the samples' ids here mean nothing to the reward model."""
    assert len(practice_tokenizer()) != 260
    source = REWARDS.build({"type": RewardModelReward, "path": reward_model, "device": CpuDevice()})
    rows = [prompt_row("Two?"), prompt_row("Why?", 1)]
    texts = [["2", "two"], ["so", ""]]
    found = source.rewards(rows, [drawn(*some) for some in texts])
    wanted = [
        [score_alone(reward_model, [*row.prompt, {"role": "assistant", "content": text}]) for text in some]
        for row, some in zip(rows, texts, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.dtype == np.float32


def test_long_conversations(reward_model: str, prompt_row: Make, drawn: Make) -> None:
    """A long prompt loses its beginning; an answer that alone is too long is an error, or gets what is asked for; the
    answer beside it keeps its own score."""
    kept = RewardModelReward(reward_model, device=CpuDevice())
    assert np.isfinite(kept.rewards([prompt_row("x" * 80)], [drawn("ab", "c")])).all()
    rows, samples = [prompt_row("Two?", 3)], [drawn("2", "2" * 80)]
    with pytest.raises(RewardError, match=r"answer 2 to prompt 3 cannot be scored \(too-long: .*\); set unscored to"):
        kept.rewards(rows, samples)
    told = RewardModelReward(reward_model, device=CpuDevice(), unscored=-9.0)
    alone = score_alone(reward_model, [*rows[0].prompt, {"role": "assistant", "content": "2"}])
    np.testing.assert_allclose(told.rewards(rows, samples), [[alone, -9.0]], atol=1e-5)


def test_weights_that_are_damaged(tmp_path: Path, prompt_row: Make, drawn: Make) -> None:
    model = tiny_backbone(vocab_size=260)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RewardError, match="scores that are not finite"):
        RewardModelReward(str(tmp_path), device=CpuDevice()).rewards([prompt_row()], [drawn("a")])
