"""Random numbers of an answer, and the tokens they choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from xrlhf.models.generation import Sampling
from xrlhf.rl.rollouts.drawing import draw, uniforms_of


def test_the_numbers_of_an_answer_are_its_own() -> None:
    """They change with the key, the prompt and the answer's number, and nothing else; a longer answer goes on."""
    numbers = uniforms_of(7, 3, 1, 1000)
    assert numbers.dtype == np.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    np.testing.assert_array_equal(numbers[:10], uniforms_of(7, 3, 1, 10))
    others = [uniforms_of(*place, 1000) for place in ((8, 3, 1), (7, 4, 1), (7, 3, 2), (7 + (1 << 40), 3, 1))]
    for other in others:
        assert not np.isin(numbers, other).any() or np.mean(numbers == other) < 0.01
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.15


def test_the_numbers_stay_what_they_are() -> None:
    """Answers of a seed are the same with every version of numpy; the values are of this function, 2026."""
    again = np.random.PCG64(np.random.SeedSequence([1, 0, 2, 0, 3])).random_raw(2) >> np.uint64(40)
    np.testing.assert_array_equal(uniforms_of(1, 2, 3, 2), again.astype(np.float32) / 2**24)


def reference_probabilities(logits: torch.Tensor, sampling: Sampling, history: torch.Tensor) -> torch.Tensor:
    """What transformers makes of logits before it draws."""
    processors: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(processors)(history, logits.clone()).softmax(dim=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_each_token_has_the_share_that_transformers_gives_it(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    """A grid of 2,000 points over [0, 1): each token is met as often as its probability says, to one point or two."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, 9, generator=generator)
    history = torch.tensor([[0, 4, 4]])
    points = (torch.arange(2000) + 0.5) / 2000
    drawn = draw(logits.expand(2000, -1), points, sampling, history.expand(2000, -1))
    shares = torch.bincount(drawn.tokens, minlength=9) / 2000
    wanted = reference_probabilities(logits, sampling, history)[0]
    torch.testing.assert_close(shares, wanted, atol=1.1e-3, rtol=0)
    assert not shares[wanted == 0].any()
    torch.testing.assert_close(drawn.logps, logits.log_softmax(dim=1)[0, drawn.tokens], atol=1e-5, rtol=1e-5)


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    drawn = draw(logits, torch.tensor([0.99, 0.99]), Sampling(greedy=True))
    assert drawn.tokens.tolist() == [1, 0]
    penalised = draw(logits, torch.zeros(2), Sampling(greedy=True, repetition_penalty=10.0), torch.tensor([[1], [0]]))
    assert penalised.tokens.tolist() == [2, 1]
    # What the policy itself says, whatever the penalty.
    torch.testing.assert_close(penalised.logps, logits.log_softmax(dim=1)[[0, 1], [2, 1]])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_tokens_without_a_chance_are_never_drawn(uniform: float) -> None:
    """At both ends of the interval, where rounding would show."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 1000, generator=generator)
    logits[:, :10] = -torch.inf
    logits[:, -10:] = -torch.inf
    tokens = draw(logits, torch.full((200,), uniform), Sampling()).tokens
    assert ((tokens >= 10) & (tokens < 990)).all()
