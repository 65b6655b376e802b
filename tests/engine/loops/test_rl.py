"""Reinforcement learning: what a rollout becomes, what resumes, and that it learns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rl_toy import (
    ADAMW,
    SGD_OF_1,
    STOP,
    WANTED,
    FixedRollouts,
    PromptToys,
    SlowRollouts,
    TokenReward,
    resume,
    rl_run,
    save,
    steps,
    tiny_actor_critic,
)
from safetensors.torch import load_file

from xrlhf.engine.checkpoint import load_checkpoint
from xrlhf.errors import CheckpointError, ConfigError, RewardError
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.models import ActorCritic, causal_lm_from_pretrained
from xrlhf.rl import GAE, GroupRelative, PromptRow, ReturnsToGo, Sample

PPO: dict[str, Any] = {
    "advantage": {"type": GAE},
    "num_answers": 2,
    "epochs": 2,
    "minibatches": 3,
    "max_rollouts": 4,
    "kl_coef": 0.05,
    "kl_target": 1.0,
    "kl_horizon": 100,
    "score_normalise": True,
}
GRPO: dict[str, Any] = {"advantage": {"type": GroupRelative}, "num_answers": 4, "epochs": 2, "max_rollouts": 3}
TIMES = ("seconds", "memory", "tokens_per_second", "groups_per_second")


def same(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]], tolerance: float = 0.0) -> None:
    """Every value of every step is the same, times apart."""
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            if not name.startswith(TIMES):
                assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


# ---------------------------------------------------------------- what a step sees


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_ratios_are_1_on_the_first_update_and_not_afterwards(tmp_path: Path, critic: str) -> None:
    run = rl_run(tiny_actor_critic(critic=critic), tmp_path, **PPO)
    logs = steps(run, 12)
    for first in (0, 6):
        assert logs[first]["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert logs[first]["ratio_min"] == pytest.approx(1, abs=1e-5)
        assert logs[first]["kl_update"] == pytest.approx(0, abs=1e-6)
    assert logs[5]["ratio_max"] > 1.001 > 0.999 > logs[5]["ratio_min"]
    # The sampler computed the same probabilities in another way.
    assert logs[0]["sampler_gap_max"] < 1e-4
    # At the beginning the policy is its reference.
    assert logs[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert logs[6]["kl_k3"] > 1e-4


def test_the_first_gradient_is_that_of_the_plain_objective(tmp_path: Path) -> None:
    """Against a slow reference: every answer computed alone, the advantages by hand, one SGD step of rate 1."""
    model, copy = tiny_actor_critic(reference=None), tiny_actor_critic(reference=None)
    run = rl_run(
        model,
        tmp_path,
        optim_wrapper=SGD_OF_1,
        advantage={"type": GroupRelative, "scale": None},
        num_answers=3,
        max_rollouts=1,
    )
    before = weights(copy)
    steps(run, 1)
    experience = run.loop._experience
    total, num_tokens = torch.zeros(()), 0
    with copy.generating() as plain:
        plain.train()
        for group in experience.groups:
            rewards = np.array([(ids == WANTED).mean() for ids in group.response_ids])
            for ids, advantage in zip(group.response_ids, rewards - rewards.mean(), strict=True):
                row = torch.from_numpy(np.concatenate([group.prompt_ids, ids]).astype(np.int64))[None]
                log_probs = plain(input_ids=row, use_cache=False).logits[0].log_softmax(-1)
                places = torch.arange(len(group.prompt_ids) - 1, row.shape[1] - 1)
                chosen = log_probs[places, torch.from_numpy(ids.astype(np.int64))]
                total, num_tokens = total - float(advantage) * chosen.sum(), num_tokens + len(ids)
        (total / num_tokens).backward()
    for old, mine, other in zip(before, model.parameters(), copy.parameters(), strict=True):
        expected = old if other.grad is None else old - other.grad
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalise", ["tokens", "answers"])
def test_micro_batches_change_nothing(tmp_path: Path, normalise: Any) -> None:
    """All groups in one micro-batch, or each in one of its own: the same steps."""
    runs = []
    for number, budget in enumerate((10_000, 1)):
        loss = PolicyGradientLoss(normalise=normalise, kl_coef=0.1, entropy_coef=0.01)
        model = tiny_actor_critic(loss, critic="shared")
        run = rl_run(model, tmp_path / str(number), token_budget=budget, **PPO)
        runs.append((steps(run, 8), weights(model)))
    same(runs[0][0], runs[1][0], 1e-4)
    for mine, other in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_every_prompt_is_learnt_from_once_an_epoch(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(critic="shared"), tmp_path, prompts_per_rollout=7, **PPO)
    seen: list[list[int]] = []
    for batches in run.loop.steps():
        seen.append([int(group) for batch in batches.batches for group in batch.group_ids])
        run.loop.run_step(batches)
        run.loop._iter += 1
        if len(seen) == 6:
            break
    prompts = sorted(run.loop.dataloader.prompt_ids(0).tolist())
    assert sorted(seen[0] + seen[1] + seen[2]) == sorted(seen[3] + seen[4] + seen[5]) == prompts
    assert [len(step) for step in seen] == [3, 2, 2] * 2
    assert seen[:3] != seen[3:]


def test_what_the_log_says_of_a_rollout(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(critic="shared"), tmp_path, **PPO)
    (logged,) = steps(run, 1)
    answers = [ids for group in run.loop._experience.groups for ids in group.response_ids]
    assert logged["answer_length"] == pytest.approx(np.mean([len(ids) for ids in answers]))
    assert logged["end_share"] == pytest.approx(np.mean([ids[-1] == STOP for ids in answers]))
    assert logged["reward"] == pytest.approx(np.mean([(ids == WANTED).mean() for ids in answers]), abs=1e-6)
    assert logged["unrewarded_share"] == 0
    assert logged["advantage_mean"] == pytest.approx(0, abs=1e-6)
    assert {"explained_variance", "value_error", "entropy", "clip_share", "kl_coef", "seconds_rollout"} <= logged.keys()


class CopyOfThePolicy:
    """Draws with a model of its own, read from the folder that it is told, as servers do."""

    def __init__(self) -> None:
        self.num_updates = 0

    def update_weights(self, folder: Path) -> None:
        self.num_updates += 1
        self.model = ActorCritic(causal_lm_from_pretrained(str(folder)), reference=None)

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        return SlowRollouts(self.model).sample(rows, k, key=key)


def test_servers_draw_with_the_weights_of_now(tmp_path: Path) -> None:
    """The difference between sampler and trainer stays that of rounding, while the policy moves."""
    rollouts = CopyOfThePolicy()
    run = rl_run(tiny_actor_critic(), tmp_path, rollouts=rollouts, **GRPO)
    logs = steps(run, 6)
    assert rollouts.num_updates == 3
    assert max(step["sampler_gap_max"] for step in logs) < 1e-4
    assert logs[4]["kl_k3"] > 1e-4


def test_adapters_are_not_written_as_whole_weights(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(lora={"r": 2}), tmp_path, rollouts=CopyOfThePolicy(), **GRPO)
    with pytest.raises(ConfigError, match=r"^the policy trains adapters: set update='adapter' of the rollouts$"):
        steps(run, 1)


class ToldOfAdapters(FixedRollouts):
    """Keeps what it is told to load."""

    update = "adapter"

    def update_weights(self, folder: Path) -> None:
        self.weights = load_file(folder / "adapter_model.safetensors")


def test_adapters_are_written_alone(tmp_path: Path) -> None:
    rollouts, model = ToldOfAdapters(), tiny_actor_critic(lora={"r": 2})
    run = rl_run(model, tmp_path, rollouts=rollouts, rewards=RewardByPlace(), **GRPO)
    steps(run, 3)
    own = {name: value for name, value in model.backbone.state_dict().items() if "lora_" in name}
    assert len(rollouts.weights) == len(own) > 0
    # Those of the beginning of this rollout: one step was taken since.
    moved = [value for name, value in own.items() if not torch.equal(value, rollouts.weights[plain(name)])]
    assert moved
    assert any(value.any() for name, value in rollouts.weights.items() if "lora_B" in name)


def plain(name: str) -> str:
    """As peft calls a weight in a file."""
    return name.replace(".default", "")


class RewardByPlace(TokenReward):
    """Rewards by place, so that there is something to learn whatever is drawn."""

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        return np.tile(np.arange(len(samples[0]), dtype=np.float32), (len(rows), 1))


# ---------------------------------------------------------------- stopping early, rewards that fail


def test_a_policy_that_moved_far_skips_the_rest_of_its_rollout(tmp_path: Path) -> None:
    """Every update moves it further than 1e-9: the second of six steps finds it, four are skipped."""
    run = rl_run(tiny_actor_critic(critic="shared"), tmp_path, target_kl=1e-6, **PPO)
    logs = steps(run, 7)
    assert ["loss" in step for step in logs] == [True, True, False, False, False, False, True]
    assert [step["num_stopped_early"] for step in logs] == [0, 0, 1, 2, 3, 4, 4]
    assert logs[5]["reward"] == logs[0]["reward"] != logs[6]["reward"]


class FailingReward:
    """Says nothing from its second call on."""

    def __init__(self) -> None:
        self.calls = 0

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        self.calls += 1
        if self.calls > 1:
            raise RewardError("the server is gone")
        return TokenReward().rewards(rows, samples)


def test_rewards_that_fail_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(), tmp_path, rewards=FailingReward(), **GRPO)
    with pytest.raises(RewardError, match=r"^the server is gone$"):
        steps(run, 6)
    again = rl_run(tiny_actor_critic(), tmp_path / "again", **GRPO)
    resume(again, tmp_path / "iter_2.pth")
    whole = rl_run(tiny_actor_critic(), tmp_path / "whole", **GRPO)
    same(steps(again, 4), steps(whole, 6)[2:])


class SilentReward:
    """Says nothing of the first answer to every prompt."""

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        found = TokenReward().rewards(rows, samples)
        found[:, 0] = np.nan
        return found


@pytest.mark.parametrize("advantage", [{"type": GroupRelative}, {"type": ReturnsToGo}])
def test_answers_without_a_reward_are_counted_and_not_learnt_from(tmp_path: Path, advantage: dict[str, Any]) -> None:
    options = {**GRPO, "advantage": advantage}
    run = rl_run(tiny_actor_critic(), tmp_path, rewards=SilentReward(), **options)
    (logged,) = steps(run, 1)
    assert logged["unrewarded_share"] == 0.25
    for group in run.loop._experience.groups:
        assert not group.token_values["advantages"][: len(group.response_ids[0])].any()


class TwoSources:
    """The share of wanted tokens, and the length, which says nothing of answers of one token."""

    def table(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> SimpleNamespace:
        wanted = TokenReward().rewards(rows, samples)
        length = np.array([[len(s.ids) if len(s.ids) > 1 else np.nan for s in of] for of in samples], dtype=np.float32)
        total = wanted + 0.1 * np.nan_to_num(length)
        return SimpleNamespace(total=total, by_name={"wanted": wanted, "length": length})


def test_several_sources_are_logged_apart(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(), tmp_path, rewards=TwoSources(), **GRPO)
    (logged,) = steps(run, 1)
    answers = [ids for group in run.loop._experience.groups for ids in group.response_ids]
    assert logged["reward_length"] == pytest.approx(np.mean([len(ids) for ids in answers if len(ids) > 1]))
    wanted = np.mean([(ids == WANTED).mean() for ids in answers])
    assert logged["reward_wanted"] == pytest.approx(wanted, abs=1e-6)
    assert logged["reward"] == pytest.approx(wanted + 0.1 * np.mean([len(i) * (len(i) > 1) for i in answers]), abs=1e-5)


# ---------------------------------------------------------------- dynamic sampling, long answers


class OddAreAlike(TokenReward):
    """One answer after the other gets more, but for prompts of odd index, all of whose answers get 1."""

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        places = np.tile(np.arange(len(samples[0]), dtype=np.float32), (len(rows), 1))
        return np.where(np.array([row.index % 2 for row in rows])[:, None] == 1, 1.0, places)


def prompts_of(run: SimpleNamespace) -> list[int]:
    return [group.row for group in run.loop._experience.groups]


@pytest.mark.parametrize("redraws", [0, 1, 9])
def test_prompts_whose_answers_are_alike_give_way_to_others(tmp_path: Path, redraws: int) -> None:
    """Six of twelve prompts a rollout; the others come once, and take the places of odd ones if they are even."""
    run = rl_run(
        tiny_actor_critic(),
        tmp_path,
        rollouts=FixedRollouts(),
        rewards=OddAreAlike(),
        dynamic_sampling=redraws,
        **GRPO,
    )
    (logged,) = steps(run, 1)
    first, found = [int(prompt) for prompt in run.loop.dataloader.prompt_ids(0)], prompts_of(run)
    num_odd = sum(prompt % 2 for prompt in first)
    assert 0 < num_odd < 6
    assert len(set(found)) == 6
    if not redraws:
        assert found == first
        assert not {"alike_share", "num_redrawn", "num_left_alike", "drawn_reward"} & logged.keys()
        return
    for before, now in zip(first, found, strict=True):
        assert now == before or (before % 2 == 1 and now % 2 == 0)
    assert logged["alike_share"] == pytest.approx(num_odd / 6)
    assert logged["num_left_alike"] == sum(prompt % 2 for prompt in found)
    # Rewards 0 to 3, or 1: before any prompt gave way.
    assert logged["drawn_reward"] == pytest.approx((1.5 * (6 - num_odd) + num_odd) / 6)
    if redraws == 1:
        assert logged["num_redrawn"] == num_odd
    else:
        # There are six even ones, and all are found.
        assert sorted(found) == [0, 2, 4, 6, 8, 10]
        assert num_odd <= logged["num_redrawn"] <= 6
    advantages = [group.token_values["advantages"] for group in run.loop._experience.groups]
    assert sum(not of_prompt.any() for of_prompt in advantages) == logged["num_left_alike"]


def test_where_all_prompts_are_alike_each_is_drawn_once(tmp_path: Path) -> None:
    run = rl_run(
        tiny_actor_critic(),
        tmp_path,
        rollouts=FixedRollouts(),
        rewards=ConstantReward(),
        dynamic_sampling=9,
        **GRPO,
    )
    (logged,) = steps(run, 1)
    assert (logged["num_redrawn"], logged["num_left_alike"], logged["alike_share"]) == (6, 6, 1)
    assert prompts_of(run) == [int(prompt) for prompt in run.loop.dataloader.prompt_ids(0)]


def test_a_run_with_dynamic_sampling_goes_on_within_a_rollout(tmp_path: Path) -> None:
    """Two steps a rollout, stopped after the third: further prompts follow from the rollout's number alone."""
    options = {**GRPO, "dynamic_sampling": 2, "rewards": OddAreAlike()}
    expected = steps(rl_run(tiny_actor_critic(), tmp_path / "whole", **options), 6)
    assert all(step["num_redrawn"] > 0 for step in expected)
    first = rl_run(tiny_actor_critic(), tmp_path / "first", **options)
    steps(first, 3)
    save(first, tmp_path / "iter_3.pth", 3)
    second = rl_run(tiny_actor_critic(), tmp_path / "second", **options)
    resume(second, tmp_path / "iter_3.pth")
    same(steps(second, 3), expected[3:])


def test_long_answers_are_counted(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(), tmp_path, rollouts=FixedRollouts(), overlong_length=6, overlong_buffer=3, **GRPO)
    (logged,) = steps(run, 1)
    lengths = np.array([len(ids) for group in run.loop._experience.groups for ids in group.response_ids])
    assert logged["overlong_share"] == pytest.approx((lengths > 3).mean())
    # No reward here but for tokens that are wanted, so the mean score is the reward's less the penalty's.
    penalty = ((lengths - 3) / 3).clip(0, 1).mean()
    assert logged["score"] == pytest.approx(logged["reward"] - penalty, abs=1e-6)


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("stopped_at", [3, 4, 6, 8])
@pytest.mark.parametrize("critic", ["shared", "own"])
def test_a_run_goes_on_bit_for_bit_also_within_a_rollout(tmp_path: Path, stopped_at: int, critic: str) -> None:
    """Six steps a rollout: stopped within the first, at its end, within the second, and where the rest is skipped."""
    options = {**PPO, "target_kl": 0.02}
    whole = rl_run(tiny_actor_critic(critic=critic), tmp_path / "whole", **options)
    expected = steps(whole, 14)
    assert any("loss" not in step for step in expected)
    first = rl_run(tiny_actor_critic(critic=critic), tmp_path / "first", **options)
    steps(first, stopped_at)
    save(first, tmp_path / f"iter_{stopped_at}.pth", stopped_at)
    second = rl_run(tiny_actor_critic(critic=critic), tmp_path / "second", **options)
    resume(second, tmp_path / f"iter_{stopped_at}.pth")
    same(steps(second, 14 - stopped_at), expected[stopped_at:])
    for mine, other in zip(weights(second.model), weights(whole.model), strict=True):
        assert torch.equal(mine, other)


def test_a_checkpoint_holds_the_rollout_only_while_it_is_learnt_from(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(critic="shared"), tmp_path, **PPO)
    steps(run, 2)
    save(run, tmp_path / "iter_2.pth", 2)
    steps(run, 4)
    save(run, tmp_path / "iter_6.pth", 6)
    assert "experience" in load_checkpoint(tmp_path / "iter_2.pth")["reinforcement"]
    assert "experience" not in load_checkpoint(tmp_path / "iter_6.pth")["reinforcement"]


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(critic="shared"), tmp_path, **PPO)
    with pytest.raises(CheckpointError, match=r"^x\.pth was saved by another kind of training: it can serve --load-"):
        run.loop.load_training_state({"meta": {}}, "x.pth")
    state = run.loop.training_state(0)
    other = rl_run(tiny_actor_critic(critic="shared"), tmp_path / "other", **{**PPO, "epochs": 3})
    with pytest.raises(CheckpointError, match=r"^x\.pth was trained with epochs=2 and the recipe says 3: use the same"):
        other.loop.load_training_state(state, "x.pth")


# ---------------------------------------------------------------- it learns


def test_a_bandit_finds_its_best_arm(tmp_path: Path) -> None:
    """One prompt, answers of one token, a reward for one of 32: the optimum is its probability of 1."""
    model = tiny_actor_critic(reference=None)
    run = rl_run(
        model,
        tmp_path,
        rollouts=SlowRollouts(model, max_new_tokens=1),
        prompts=PromptToys(1),
        prompts_per_rollout=1,
        optim_wrapper={**ADAMW, "optimizer": {**ADAMW["optimizer"], "lr": 3e-2}},
        advantage={"type": GroupRelative, "scale": None},
        num_answers=64,
        max_rollouts=60,
    )
    logs = steps(run, 60)
    assert logs[0]["reward"] < 0.3
    assert np.mean([step["reward"] for step in logs[-5:]]) > 0.97


def test_a_bandit_held_by_its_reference_finds_the_known_optimum(tmp_path: Path) -> None:
    """With a KL weight of b the best policy is p_ref * exp(r / b), normalised."""
    model = tiny_actor_critic()
    b = 0.5
    run = rl_run(
        model,
        tmp_path,
        rollouts=SlowRollouts(model, max_new_tokens=1),
        prompts=PromptToys(1),
        prompts_per_rollout=1,
        optim_wrapper={**ADAMW, "optimizer": {**ADAMW["optimizer"], "lr": 5e-3}},
        advantage={"type": GroupRelative, "baseline": "others", "scale": None},
        kl_coef=b,
        num_answers=128,
        max_rollouts=120,
    )
    prompt = torch.from_numpy(run.loop.dataloader.dataset.prompts[0].astype(np.int64))[None]
    rewards = torch.zeros(32)
    rewards[WANTED] = 1.0
    with model.generating() as plain, torch.no_grad():
        reference = plain(input_ids=prompt, use_cache=False).logits[0, -1].log_softmax(0)
    steps(run, 120)
    with model.generating() as plain, torch.no_grad():
        found = plain(input_ids=prompt, use_cache=False).logits[0, -1].softmax(0)
    expected = (reference + rewards / b).softmax(0)
    assert expected[WANTED] / reference[WANTED].exp() > 3
    assert found[WANTED].item() == pytest.approx(expected[WANTED].item(), abs=0.06)
    assert 0.5 * (found - expected).abs().sum().item() < 0.1


def test_a_critic_learns_what_to_expect(tmp_path: Path) -> None:
    """Answers that are always the same are rewarded always alike: the critic's error falls to a fraction."""
    run = rl_run(
        tiny_actor_critic(critic="shared", value_loss={"type": "ValueLoss", "coef": 1.0, "clip": None}),
        tmp_path,
        rollouts=FixedRollouts(),
        rewards=ConstantReward(),
        advantage={"type": GAE, "lam": 1.0},
        epochs=4,
        max_rollouts=20,
    )
    logs = steps(run, 80)
    assert logs[0]["value_error"] == pytest.approx(4.0, rel=0.01)
    assert logs[-1]["value_error"] < 0.2


class ConstantReward:
    """2 for every answer."""

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        return np.full((len(rows), len(samples[0])), 2.0, dtype=np.float32)


# ---------------------------------------------------------------- what is written, what is refused


def test_the_table_of_samples(tmp_path: Path) -> None:
    run = rl_run(tiny_actor_critic(), tmp_path, **GRPO)
    run.loop.samples_interval, run.loop.num_samples = 2, 5
    steps(run, 6)
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["rollout"] for row in rows] == [0] * 5 + [2] * 5
    assert {"step", "prompt", "answer", "reward", "advantage", "num_tokens", "ending"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_answers": 0}, "RLTrainLoop: num_answers must be a whole number of at least 1, got 0"),
        ({"minibatches": 7}, "RLTrainLoop: 7 minibatches of 6 prompts: the answers to a prompt stay together, so .*"),
        ({"max_epochs": 1}, "train_cfg needs either max_epochs or max_rollouts"),
        ({"dynamic_sampling": -1}, "RLTrainLoop: dynamic_sampling must be a whole number of at least 0, got -1"),
        (
            {"dynamic_sampling": 1, "num_answers": 1},
            "RLTrainLoop: dynamic_sampling looks for prompts whose answers are rewarded differently: set .*",
        ),
        ({"target_kl": 0}, "RLTrainLoop: target_kl must be above 0, or None to skip no step, got 0"),
        ({"advantage": {"lam": 1}}, "RLTrainLoop: advantage is a dict with 'type', such as .*"),
        ({"advantage": {"type": GAE, "lambda": 1}}, "RLTrainLoop: advantage: .*unexpected keyword argument 'lambda'"),
        ({"kl_estimator": "k0"}, "RLTrainLoop: kl_estimator is 'k0'; accepted are 'k1', 'k2', 'k3'"),
    ],
)
def test_a_wrong_option(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        rl_run(tiny_actor_critic(), tmp_path, **{**GRPO, **options})


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            {},
            {"advantage": {"type": GAE}},
            "GAE asks a critic: set model.critic='shared', or .*",
        ),
        ({"critic": "shared"}, {}, "GroupRelative asks no critic: leave critic out of the model, or take GAE"),
        (
            {"reference": None},
            {"kl_coef": 0.1},
            "train_cfg.kl_coef compares with a reference, .*",
        ),
    ],
)
def test_a_model_that_does_not_fit(
    tmp_path: Path, model: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    run = rl_run(tiny_actor_critic(**model), tmp_path, **{**GRPO, **options})
    with pytest.raises(ConfigError, match=f"^{message}$"):
        run.loop.run()


def test_the_length_of_a_run(tmp_path: Path) -> None:
    """12 prompts, 6 a rollout: 2 epochs are 4 rollouts of 2 * 3 steps."""
    options = {name: value for name, value in PPO.items() if name != "max_rollouts"}
    loop = rl_run(tiny_actor_critic(critic="shared"), tmp_path, max_epochs=2, **options).loop
    assert (loop.max_iters, loop.max_epochs) == (24, 2)
    loop.resume_at(13)
    assert loop.epoch == 1
    assert loop.length_line() == (
        "4 rollouts of 6 prompts with 2 answer(s) each, 6 step(s) on each rollout, 12 prompts in the data"
    )
