"""Policy and critic: what each says of drawn tokens, alone and packed, and which options are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_groups, tiny_backbone, tiny_causal_lm

from xrlhf.data.packing import pack
from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses.policy import DPOLoss
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.losses.value import ValueLoss
from xrlhf.models import ActorCritic, PolicyModel
from xrlhf.structures import LossOutput, PackedBatch, TokenizedGroup

SHAPES = [(4, (3, 2, 5)), (3, (2,)), (1, (1, 1))]


def drawn() -> list[TokenizedGroup]:
    """Answers with values of their tokens."""
    groups = []
    for group in random_groups(SHAPES):
        mask = np.arange(group.num_tokens) >= len(group.prompt_ids)
        generator = np.random.default_rng(len(groups))
        names = ("old_logps", "advantages", "reference", "old_values", "returns")
        values = {name: generator.normal(size=int(mask.sum())).astype(np.float32) for name in names}
        groups.append(replace(group, is_target=mask, token_values=values))
    return groups


def made(critic: Any = "shared", **options: Any) -> ActorCritic:
    """A policy whose critic says something."""
    torch.manual_seed(1)
    if critic == "own":
        critic = tiny_backbone()
    model = ActorCritic(tiny_causal_lm(), loss=PolicyGradientLoss(kl_coef=0.1), critic=critic, **options)
    for head in (model.value_head, getattr(model.critic, "score", None)):
        if head is not None:
            torch.nn.init.normal_(head.weight)
    return model.eval()


@pytest.mark.parametrize("critic", ["shared", "own", None])
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_groups_equal_every_answer_alone(critic: str | None, lora: dict[str, int] | None) -> None:
    """The prompt once, beside other groups; and each conversation in a row of its own."""
    model = made(critic, lora=lora)
    groups = drawn()
    found = model(pack(groups), mode="rollout")
    assert set(found) == {"old_logps", "reference", *(["old_values"] if critic else [])}
    alone: dict[str, list[torch.Tensor]] = {name: [] for name in found}
    for group in groups:
        for ids in group.response_ids:
            one = TokenizedGroup(
                group.prompt_ids, (ids,), is_target=np.arange(len(group.prompt_ids) + len(ids)) >= len(group.prompt_ids)
            )
            for name, values in model(pack([one]), mode="rollout").items():
                alone[name].append(values)
    for name, values in found.items():
        torch.testing.assert_close(values, torch.cat(alone[name]), rtol=1e-4, atol=1e-5)


def test_log_probs_and_values_are_read_at_the_token_before() -> None:
    model = made("own")
    group = drawn()[1]
    found = model(pack([group]), mode="rollout")
    row = torch.from_numpy(np.concatenate([group.prompt_ids, group.response_ids[0]]).astype(np.int64))[None]
    with model.generating() as plain, torch.no_grad():
        log_probs = plain(input_ids=row, use_cache=False).logits[0].log_softmax(-1)
    expected = [log_probs[2, row[0, 3]], log_probs[3, row[0, 4]]]
    torch.testing.assert_close(found["old_logps"], torch.stack(expected), rtol=1e-4, atol=1e-5)
    critic = tiny_backbone()
    critic.load_state_dict(model.critic.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        states = critic.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
        values = critic.score(states)[2:4, 0]
    torch.testing.assert_close(found["old_values"], values, rtol=1e-4, atol=1e-5)


def test_a_shared_critic_begins_at_0() -> None:
    model = ActorCritic(tiny_causal_lm(), loss=PolicyGradientLoss(), critic="shared").eval()
    assert not model(pack(drawn()), mode="rollout")["old_values"].any()


def test_filler_counts_nowhere() -> None:
    model = made("shared", value_loss=ValueLoss(coef=1.0))
    groups = drawn()
    alone = model(pack(groups[:2]))
    beside = model(pack(groups, weights=[1, 1, 0]))
    assert isinstance(beside, LossOutput)
    torch.testing.assert_close(beside.loss, alone.loss)
    for name, value in alone.metrics.items():
        torch.testing.assert_close(beside.metrics[name], value)
    assert beside.group_losses[2] == 0
    torch.testing.assert_close(beside.group_losses.sum(), beside.loss.detach())


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_the_loss_is_the_sum_of_both(critic: str) -> None:
    """Of every token the policy's and the critic's, by the modules that have tests of their own."""
    model = made(critic, value_loss=ValueLoss(coef=0.5))
    batch = pack(drawn())
    output, values = model(batch), batch.token_values
    assert values is not None
    with torch.no_grad():
        states = model._source_states(model.hf_model, batch)
        error = ValueLoss(coef=0.5)(model.values(batch, states), values["old_values"], values["returns"])
    without = ActorCritic(tiny_causal_lm(), loss=PolicyGradientLoss(kl_coef=0.1)).eval()
    torch.testing.assert_close(output.loss, without(batch).loss + error.sum(), rtol=1e-4, atol=1e-4)
    output.loss.backward()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert trained == []


def test_the_entropy_is_that_of_the_whole_vocabulary() -> None:
    loss = PolicyGradientLoss(entropy_coef=0.1)
    model = ActorCritic(tiny_causal_lm(), loss=loss, reference=None).eval()
    group = drawn()[1]
    output = model(pack([group]))
    row = torch.from_numpy(np.concatenate([group.prompt_ids, group.response_ids[0]]).astype(np.int64))[None]
    with model.generating() as plain, torch.no_grad():
        log_probs = plain(input_ids=row, use_cache=False).logits[0, 2:4].log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum()
    torch.testing.assert_close(output.metrics["entropy_now"], entropy, rtol=1e-4, atol=1e-4)
    plain_loss = ActorCritic(tiny_causal_lm(), loss=PolicyGradientLoss(), reference=None).eval()(pack([group])).loss
    torch.testing.assert_close(output.loss, plain_loss - 0.1 * entropy, rtol=1e-4, atol=1e-4)
    output.loss.backward()


def test_what_a_checkpoint_holds() -> None:
    """Adapters, and the head of a critic; never the reference; all of a critic of its own."""
    with_adapters = {name for name in made("shared", lora={"r": 2}).checkpoint_names() if "lora_" not in name}
    assert {"value_head.weight", "value_head.bias"} <= with_adapters
    own = made("own").checkpoint_names()
    assert "critic.score.weight" in own
    assert not any(name.startswith("reference.") for name in own)
    adapted = made("own", critic_lora={"r": 2})
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad and "critic" in name]
    assert all("lora_" in name or "score" in name for name in trained)
    assert any("score" in name for name in trained)


def test_flops_count_the_critic() -> None:
    batch: PackedBatch = pack(drawn())
    assert made("own").count_flops()(batch) > 1.5 * made("shared").count_flops()(batch) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": DPOLoss()}, "DPOLoss does not learn from rewards; an ActorCritic takes a PolicyGradientLoss, and .*"),
        ({"reference": "cached"}, "reference='cached' needs answers that are known before training: .*"),
        ({"reference": "adapter_off"}, r"reference='adapter_off' needs lora=dict\(...\): .*"),
        ({"reference": "other"}, "reference must be 'auto', 'adapter_off', 'copy', None or a dict .*, got 'other'"),
        (
            {"reference": None, "loss": PolicyGradientLoss(kl_coef=0.1)},
            "the loss has a kl_coef, which compares with a reference: set reference='auto'",
        ),
        ({"value_loss": ValueLoss()}, "value_loss needs a critic: set critic='shared', or a dict that names a model"),
        ({"critic": "own"}, "critic must be None, 'shared' or a dict that names a model, got 'own'"),
        ({"critic": "shared", "critic_lora": {"r": 2}}, "critic_lora needs a critic of its own: .*"),
        ({"critic": "shared", "value_loss": DPOLoss()}, "value_loss is a DPOLoss; accepted is a ValueLoss"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        ActorCritic(tiny_causal_lm(), **{"loss": PolicyGradientLoss(), **options})


def test_a_policy_on_preferences_refuses_this_loss() -> None:
    with pytest.raises(ConfigError, match=r"^PolicyGradientLoss is a loss on scores"):
        PolicyModel(tiny_causal_lm(), loss=PolicyGradientLoss())


def test_a_critic_of_another_vocabulary() -> None:
    with pytest.raises(
        ModelError, match=r"^the critic embeds 200 tokens and the policy 320: it judges the policy's own"
    ):
        ActorCritic(tiny_causal_lm(), loss=PolicyGradientLoss(), critic=tiny_backbone(vocab_size=200))


def test_a_model_without_loss_or_values() -> None:
    with pytest.raises(ModelError, match=r"^this policy has no loss: "):
        ActorCritic(tiny_causal_lm())(pack(drawn()))
    plain = [replace(group, token_values=None) for group in drawn()]
    with pytest.raises(ModelError, match=r"^the answers come without their advantages: "):
        made(None)(pack(plain))
