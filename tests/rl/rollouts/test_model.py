"""Answers of a model in this process: the same as transformers gives, and the same whatever stands beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import END, byte_tokenizer, tiny_causal_lm
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from xrlhf.data.packing import pack
from xrlhf.devices import CpuDevice
from xrlhf.errors import ConfigError, ModelError
from xrlhf.models import PolicyModel
from xrlhf.models.generation import Sampling
from xrlhf.registry import ROLLOUTS
from xrlhf.rl.rollouts import ModelRollouts
from xrlhf.rl.rollouts import model as module
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import TokenizedGroup, as_ids

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma2",
    "gemma3_text",
    "internlm2",
    "mistral",
    "opt",
    "bloom",
    "gpt_oss",
)
PADDED = {"gemma2": {"sliding_window": 6}, "mistral": {"sliding_window": 5}, "gemma3_text": {"sliding_window": 6}}


def prompts(lengths: Sequence[int] = (9, 3, 14, 1, 9), seed: int = 0) -> list[PromptRow]:
    generator = np.random.default_rng(seed)
    return [PromptRow("", as_ids(generator.integers(5, 250, n)), 10 + i) for i, n in enumerate(lengths)]


def rollouts(policy: Any, **options: Any) -> ModelRollouts:
    options = {"sampling": {"max_new_tokens": 12}, **options}
    return ModelRollouts(policy, byte_tokenizer(), device=CpuDevice(), **options)


def ids_of(samples: Sequence[Sequence[Sample]]) -> list[list[list[int]]]:
    return [[sample.ids.tolist() for sample in row] for row in samples]


# ------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family: str) -> None:
    """Prompts of five lengths in one batch here, each alone there; answers longer than a sliding window."""
    model = tiny_causal_lm(family, vocab_size=260, seed=1, **PADDED.get(family, {}))
    rows = prompts()
    found = rollouts(model, sampling={"max_new_tokens": 12, "greedy": True}).sample(rows, 1, key=0)
    own = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=END, pad_token_id=0, use_cache=True)
    for row, (sample,) in zip(rows, found, strict=True):
        ids = torch.from_numpy(row.prompt_ids.astype(np.int64))[None]
        wanted = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=own)
        assert sample.ids.tolist() == wanted[0, len(row.prompt_ids) :].tolist()


def token_log_probs(
    policy: PolicyModel, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]
) -> torch.Tensor:
    """What training reads of the same tokens, packed with each prompt once."""
    groups = []
    for row, drawn in zip(rows, samples, strict=True):
        mask = [np.zeros(len(row.prompt_ids), bool), *(np.ones(len(sample.ids), bool) for sample in drawn)]
        groups.append(
            TokenizedGroup(row.prompt_ids, tuple(sample.ids for sample in drawn), is_target=np.concatenate(mask))
        )
    with torch.no_grad():
        return policy.token_log_probs(pack(groups))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "internlm2", "mistral"])
def test_log_probabilities_are_those_of_training(family: str) -> None:
    """With a temperature and top-p, which change what is drawn and not what is recorded."""
    policy = PolicyModel(tiny_causal_lm(family, vocab_size=260, seed=2, **PADDED.get(family, {})))
    rows = prompts()
    drawn = rollouts(policy, sampling={"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9}).sample(rows, 3, key=5)
    found = np.concatenate([sample.logps for row in drawn for sample in row])
    np.testing.assert_allclose(found, token_log_probs(policy, rows, drawn).numpy(), atol=1e-4)
    assert found.dtype == np.float32


def test_adapters_are_on_and_the_policy_stays_as_it_was() -> None:
    """Adapters that do something: the answers change with them, and what is recorded is what training reads."""
    torch.manual_seed(0)
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "lora_dropout": 0.5}
    policy = PolicyModel(tiny_causal_lm(vocab_size=260), lora=lora)
    policy.train()
    attention = policy.hf_model.config._attn_implementation
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    rows = prompts()
    source = rollouts(policy)
    drawn = source.sample(rows, 2, key=1)
    assert ids_of(drawn) != ids_of(rollouts(tiny_causal_lm(vocab_size=260)).sample(rows, 2, key=1))
    assert policy.training
    assert policy.hf_model.config._attn_implementation == attention
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())
    policy.eval()
    found = np.concatenate([sample.logps for row in drawn for sample in row])
    np.testing.assert_allclose(found, token_log_probs(policy, rows, drawn).numpy(), atol=1e-4)
    # After an update of the weights the next answers are by the new ones.
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_" in name:
                weight.mul_(-2)
    assert ids_of(source.sample(rows, 2, key=1)) != ids_of(drawn)


def test_gradients_flow_afterwards() -> None:
    """Nothing that was made while answers were drawn is left in the way of training."""
    from xrlhf.losses.policy import LanguageModelLoss

    policy = PolicyModel(tiny_causal_lm(vocab_size=260), loss=LanguageModelLoss())
    rows = prompts()
    drawn = rollouts(policy).sample(rows, 2, key=1)
    groups = [
        TokenizedGroup(
            r.prompt_ids, (s[0].ids,), is_target=np.arange(len(r.prompt_ids) + len(s[0].ids)) >= len(r.prompt_ids)
        )
        for r, s in zip(rows, drawn, strict=True)
    ]
    policy(pack(groups)).loss.backward()
    assert all(weight.grad is not None for weight in policy.parameters())


def test_in_low_precision() -> None:
    """Under autocast as in training; log-probabilities are float32."""
    policy = PolicyModel(tiny_causal_lm(vocab_size=260), precision="bfloat16")
    rows = prompts()
    drawn = rollouts(policy).sample(rows, 2, key=1)
    found = np.concatenate([sample.logps for row in drawn for sample in row])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, token_log_probs(policy, rows, drawn).numpy(), atol=0.15)


# --------------------------------------------------------------------------------------------- what is drawn


def test_answers_follow_from_key_prompt_and_number_alone() -> None:
    """Alone, in other batches, in another order, with more answers beside them: the same tokens."""
    model = tiny_causal_lm(vocab_size=260)
    rows = prompts((9, 3, 14, 1, 9, 6))
    source = rollouts(model)
    together = source.sample(rows, 4, key=3)
    assert ids_of(source.sample(rows, 4, key=3)) == ids_of(together)
    assert ids_of(source.sample(rows[::-1], 4, key=3)) == ids_of(together)[::-1]
    alone = [source.sample([row], 4, key=3)[0] for row in rows]
    assert ids_of(alone) == ids_of(together)
    more = source.sample(rows, 6, key=3)
    assert [row[:4] for row in ids_of(more)] == ids_of(together)
    for small in (1, 40, 100):
        batches = rollouts(model, max_batch_tokens=small).sample(rows, 4, key=3)
        assert ids_of(batches) == ids_of(together)
        for one, other in zip(batches, together, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)
    assert ids_of(source.sample(rows, 4, key=4)) != ids_of(together)
    moved = [PromptRow(row.prompt, row.prompt_ids, row.index + 100) for row in rows]
    assert ids_of(source.sample(moved, 4, key=3)) != ids_of(together)
    assert all(len({sample.ids.tobytes() for sample in row}) > 1 for row in together)


def test_no_generator_of_torch_or_numpy_is_touched() -> None:
    source = rollouts(tiny_causal_lm(vocab_size=260))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = (torch.get_rng_state(), np.random.get_state()[1].tobytes())  # type: ignore[union-attr] # noqa: NPY002
    source.sample(prompts(), 2, key=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]  # type: ignore[union-attr] # noqa: NPY002


class Chain(nn.Module):
    """In place of an output layer: what comes next follows from the last token alone, by a table of probabilities."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.log())
        self.weight = self.table

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.table[hidden[..., 0].round().long()]


def chain(table: torch.Tensor) -> PreTrainedModel:
    """A Llama whose states are the tokens' own numbers, and whose next token is drawn by ``table``."""
    model = tiny_causal_lm(vocab_size=260, num_hidden_layers=1)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, 0] = torch.arange(260.0)
        for weight in model.model.layers.parameters():
            weight.zero_()
    model.model.norm = nn.Identity()
    model.lm_head = Chain(table)
    return model


def chi_square(counts: Sequence[int], wanted: Sequence[float]) -> float:
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, wanted, strict=True) if p > 0)


def test_the_distribution_of_what_is_drawn() -> None:
    """Five tokens, 4,000 answers of three: the first by the prompt's row of the table, the second by the first's.

    Chi-square with 4 degrees of freedom exceeds 23.5 once in 10,000 times; the seed is fixed, so this holds for ever.
    """
    table = torch.zeros(260, 260)
    rows = {10: (0.5, 0.2, 0.15, 0.1, 0.05), 11: (0.05, 0.05, 0.3, 0.3, 0.3)}
    for i in range(5):
        table[20 + i, 20:25] = torch.tensor(rows[11] if i % 2 else rows[10])
    table[10, 20:25] = torch.tensor(rows[10])
    source = rollouts(chain(table), sampling={"max_new_tokens": 3})
    (drawn,) = source.sample([PromptRow("", as_ids([10]), 0)], 4000, key=1)
    first = Counter(int(sample.ids[0]) for sample in drawn)
    assert set(first) == set(range(20, 25))
    assert chi_square([first[20 + i] for i in range(5)], rows[10]) < 23.5
    after_even = Counter(int(s.ids[1]) for s in drawn if s.ids[0] % 2 == 0)
    after_odd = Counter(int(s.ids[1]) for s in drawn if s.ids[0] % 2 == 1)
    assert chi_square([after_even[20 + i] for i in range(5)], rows[10]) < 23.5
    assert chi_square([after_odd[20 + i] for i in range(5)], rows[11]) < 23.5
    assert math.isclose(drawn[0].logps[0], math.log(rows[10][int(drawn[0].ids[0]) - 20]), abs_tol=1e-4)
    # At half the temperature probabilities are squared: 0.25, 0.04, 0.0225, 0.01, 0.0025 of 0.325.
    cold = rollouts(chain(table), sampling={"max_new_tokens": 1, "temperature": 0.5})
    (drawn,) = cold.sample([PromptRow("", as_ids([10]), 0)], 4000, key=2)
    squared = [p * p / 0.325 for p in rows[10]]
    assert chi_square([sum(int(s.ids[0]) == 20 + i for s in drawn) for i in range(5)], squared) < 23.5
    assert math.isclose(drawn[0].logps[0], math.log(rows[10][int(drawn[0].ids[0]) - 20]), abs_tol=1e-4)


# ------------------------------------------------------------------------------------------- where answers end


def test_where_answers_end() -> None:
    """After token 10 the answer ends at once, after 11 it goes on for ever; the end token is part of the ids."""
    table = torch.zeros(260, 260)
    a = byte_tokenizer()("a")["input_ids"][0]
    table[10, END] = 1.0
    table[11, a] = 1.0
    table[a, a] = 1.0
    ends, goes_on = rollouts(chain(table), sampling={"max_new_tokens": 3}).sample(
        [PromptRow("", as_ids([9, 10]), 0), PromptRow("", as_ids([11]), 1)], 2, key=0
    )
    assert [(s.ids.tolist(), s.text, s.ending) for s in ends] == [([END], "", "stop")] * 2
    assert [(s.ids.tolist(), s.text, s.ending) for s in goes_on] == [([a, a, a], "aaa", "length")] * 2
    assert ends[0].ids.dtype == np.int32
    assert ends[0].logps.tolist() == [0.0]


def test_rows_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen prompts, of which number i ends after i + 1 tokens: far fewer rows are computed than 16 x 16."""
    table = torch.zeros(260, 260)
    for token in range(20, 36):
        table[token, token + 1 if token < 35 else END] = 1.0
    rows = [PromptRow("", as_ids([35 - i]), i) for i in range(16)]
    source = rollouts(chain(table), sampling={"max_new_tokens": 40})
    computed: list[int] = []
    forward = source._forward

    def counting(model: Any, cache: Any, state: Any, ids: torch.Tensor) -> torch.Tensor:
        computed.append(len(ids))
        return forward(model, cache, state, ids)

    monkeypatch.setattr(source, "_forward", counting)
    found = source.sample(rows, 1, key=0)
    assert [len(row[0].ids) for row in found] == list(range(1, 17))
    assert [row[0].ids.tolist() for row in found] == [[*range(36 - i, 36), END] for i in range(16)]
    assert len(computed) == 16
    assert sum(computed) < 0.65 * 16 * 16
    assert computed[-1] == 1


def test_no_answer_goes_beyond_what_the_model_reads() -> None:
    """GPT-2 has 16 learnt positions: a prompt of 14 has room for two tokens, beside one of 3 with room for 13."""
    model = tiny_causal_lm("gpt2", vocab_size=260, max_position_embeddings=16)
    rows = prompts((14, 3))
    source = rollouts(model, sampling={"max_new_tokens": 30})
    source.stop_ids = ()
    long, short = source.sample(rows, 2, key=0)
    assert [len(s.ids) for s in long] == [2, 2]
    assert [len(s.ids) for s in short] == [13, 13]
    assert {s.ending for s in (*long, *short)} == {"length"}
    assert ids_of([source.sample(rows[1:], 2, key=0)[0]]) == ids_of([short])
    with pytest.raises(ModelError, match="prompt 10 takes 16 tokens, and the model reads 1 to 16 with its answer"):
        source.sample(prompts((16,)), 1, key=0)
    with pytest.raises(ModelError, match="prompt 10 has no tokens"):
        source.sample(prompts((0,)), 1, key=0)


def test_the_cache_grows_with_long_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers many times longer than the room that is made at once."""
    from xrlhf.rl.rollouts import cache

    model = tiny_causal_lm(vocab_size=260)
    source = rollouts(model, sampling={"max_new_tokens": 40})
    wanted = source.sample(prompts(), 2, key=0)
    monkeypatch.setattr(cache, "_ROOM", 1)
    assert ids_of(source.sample(prompts(), 2, key=0)) == ids_of(wanted)


def test_a_repetition_penalty() -> None:
    """So large that nothing comes twice, neither of the answer nor of the prompt; filling does not count."""
    model = tiny_causal_lm(vocab_size=260)
    source = rollouts(model, sampling={"max_new_tokens": 12, "repetition_penalty": 1e6, "greedy": True})
    source.stop_ids = ()
    rows = prompts()
    drawn = source.sample(rows, 1, key=0)
    for row, (sample,) in zip(rows, drawn, strict=True):
        assert len(set(sample.ids.tolist())) == 12
        assert not set(sample.ids.tolist()) & set(row.prompt_ids.tolist())
    assert ids_of(source.sample(rows[1:2], 1, key=0)) == ids_of(drawn[1:2])


# ---------------------------------------------------------------------------------------------------- options


def test_batches_keep_to_their_budget() -> None:
    source = rollouts(tiny_causal_lm(vocab_size=260), sampling={"max_new_tokens": 10}, max_batch_tokens=100)
    rows = prompts((9, 3, 14, 1, 9))
    batches = list(source._batches(rows, 4, 100))
    for jobs in batches:
        assert max(job.num_cached for job in jobs) * sum(len(job.numbers) for job in jobs) <= 100
    drawn = sorted((job.slot, number) for jobs in batches for job in jobs for number in job.numbers)
    assert drawn == [(slot, number) for slot in range(5) for number in range(4)]
    # A budget below one answer still draws one at a time.
    assert [len(job.numbers) for jobs in source._batches(rows[:1], 2, 1) for job in jobs] == [1, 1]


def test_without_a_budget_there_is_one_for_the_device() -> None:
    """Keys and values of two layers, two heads of eight numbers, four bytes each: 256 bytes a token."""
    source = rollouts(tiny_causal_lm(vocab_size=260))
    assert source._token_budget(tiny_causal_lm(vocab_size=260)) == module._CPU_BYTES // 256


def test_built_from_a_recipe() -> None:
    built = ROLLOUTS.build(
        {
            "type": ModelRollouts,
            "sampling": {"max_new_tokens": 5, "temperature": 0.8},
            "policy": tiny_causal_lm(vocab_size=260),
            "tokenizer": byte_tokenizer(),
            "device": CpuDevice(),
        }
    )
    assert built.sampling == Sampling(max_new_tokens=5, temperature=0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_tokens": 0}, "max_batch_tokens must be 1 or more, got 0"),
        ({"sampling": {"temperature": 0.0}}, "temperature must be above 0, got 0"),
        ({"sampling": {"max_length": 3}}, "sampling takes max_new_tokens, temperature, top_p, .*; got max_length"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rollouts(tiny_causal_lm(vocab_size=260), **options)


def test_numbers_of_answers_that_are_refused() -> None:
    source = rollouts(tiny_causal_lm(vocab_size=260), sampling={"greedy": True})
    with pytest.raises(ConfigError, match="2 greedy answers would all be the same"):
        source.sample(prompts(), 2, key=0)
    with pytest.raises(ConfigError, match="answers to each prompt must be 1 or more, got 0"):
        source.sample(prompts(), 0, key=0)
    assert source.sample([], 1, key=0) == []


def test_weights_that_are_damaged() -> None:
    model = tiny_causal_lm(vocab_size=260)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="the model gives probabilities that are no numbers"):
        rollouts(model).sample(prompts(), 2, key=0)
