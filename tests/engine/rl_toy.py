"""Reinforcement learning without recipe, tokenizer and files: prompts in memory, a slow sampler, a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW
from toy import SGD_OF_1

from xrlhf.data.permutation import derive_key
from xrlhf.data.plan import GroupStream
from xrlhf.data.prompts import EncodedPrompt, PromptLoader
from xrlhf.devices import CpuDevice
from xrlhf.engine.loops import RLTrainLoop
from xrlhf.engine.strategies import SingleStrategy
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.models import ActorCritic, backbone_from_config, causal_lm_from_config
from xrlhf.rl import PromptRow, Sample
from xrlhf.structures import as_ids

__all__ = [
    "ADAMW",
    "SGD_OF_1",
    "STOP",
    "WANTED",
    "FixedRollouts",
    "PromptToys",
    "SlowRollouts",
    "TokenReward",
    "resume",
    "rl_run",
    "save",
    "steps",
    "tiny_actor_critic",
]

STOP, WANTED = 3, 7
ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.0}, "max_grad_norm": 1.0}
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


class PromptToys:
    """Prompts of random ids below 32, with what loaders and loops ask of a data set."""

    def __init__(self, number: int = 12) -> None:
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 8, number)
        self.prompts = [as_ids(generator.integers(5, 32, length)) for length in lengths]
        self.sizes, self.weights, self.names = [number], [1.0], ["toy"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> EncodedPrompt:
        return EncodedPrompt("", self.prompts[index], {}, f"toy[{index}]")

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        chosen = range(len(self)) if indices is None else indices
        return np.array([len(self.prompts[int(index)]) for index in chosen])

    def stream(self, seed: int, shuffle: bool = True) -> GroupStream:
        return GroupStream(self.sizes, self.weights, seed=seed, shuffle=shuffle)

    def where(self, index: int) -> str:
        return f"toy row {index}"


class SlowRollouts:
    """Answers drawn one by one, each computed anew from its beginning for every token."""

    def __init__(self, policy: ActorCritic, max_new_tokens: int = 6) -> None:
        self.policy = policy
        self.max_new_tokens = max_new_tokens

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        with self.policy.generating() as model, torch.no_grad():
            return [[self._one(model, row, derive_key(key, row.index, number)) for number in range(k)] for row in rows]

    def _one(self, model: Any, row: PromptRow, key: int) -> Sample:
        generator = torch.Generator().manual_seed(key >> 1)
        ids, logps = [int(token) for token in row.prompt_ids], []
        start = len(ids)
        while len(ids) < start + self.max_new_tokens and (len(ids) == start or ids[-1] != STOP):
            log_probs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(0)
            token = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
            logps.append(float(log_probs[token]))
            ids.append(token)
        ending = "stop" if ids[-1] == STOP else "length"
        return Sample(as_ids(ids[start:]), np.array(logps, dtype=np.float32), str(ids[start:]), ending)  # type: ignore[arg-type]


class FixedRollouts:
    """Answers that depend on nothing but the key, whoever draws them: for models whose weights are split."""

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        return [[self._one(derive_key(key, row.index, number)) for number in range(k)] for row in rows]

    def _one(self, key: int) -> Sample:
        generator = np.random.default_rng(key)
        ids = as_ids(generator.integers(5, 32, generator.integers(1, 7)))
        return Sample(ids, np.zeros(len(ids), dtype=np.float32), str(ids.tolist()), "length")


class TokenReward:
    """How many of an answer's tokens are the one that is wanted."""

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        return np.array([[float((sample.ids == WANTED).mean()) for sample in of] for of in samples], dtype=np.float32)


def tiny_actor_critic(loss: Any = None, **options: Any) -> ActorCritic:
    """A Llama of 16 dimensions; the same weights every time. ``critic="own"`` gives it a critic of random weights."""
    torch.manual_seed(0)
    backbone = causal_lm_from_config("llama", **SIZES)
    if options.get("critic") == "own":
        options["critic"] = backbone_from_config("llama", head_init="normal", **SIZES)
    return ActorCritic(backbone, loss=PolicyGradientLoss() if loss is None else loss, **options)


def rl_run(
    model: ActorCritic,
    work_dir: Path,
    *,
    strategy: SingleStrategy | None = None,
    rollouts: Any = None,
    rewards: Any = None,
    prompts: PromptToys | None = None,
    prompts_per_rollout: int = 6,
    token_budget: int = 64,
    optim_wrapper: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> SimpleNamespace:
    """A runner with as much as the loop needs; ``logs`` collects what every step gave."""
    if strategy is None:
        strategy = SingleStrategy(
            device=CpuDevice(),
            work_dir=str(work_dir),
            env_kwargs={"launcher": "none", "randomness": {"seed": seed}},
            experiment_name=f"{work_dir}{id(model)}",
        )
    strategy.prepare(model, optim_wrapper=optim_wrapper or ADAMW, dispatch_kwargs={"max_iters": 100})
    runner = SimpleNamespace(
        strategy=strategy,
        model=strategy.model,
        rank=strategy.rank,
        work_dir=str(work_dir),
        val_loop=None,
        hooks=[],
        rollouts=rollouts or SlowRollouts(model),
        reward_source=rewards or TokenReward(),
        logs=[],
    )
    runner.call_hook = lambda name, outputs=None, **_: runner.logs.append(outputs) if outputs is not None else None
    loader = PromptLoader(
        prompts or PromptToys(),  # type: ignore[arg-type]
        prompts_per_rollout=prompts_per_rollout,
        token_budget=token_budget,
        seed=seed,
        rank=strategy.rank,
        world_size=strategy.world_size,
    )
    runner.loop = RLTrainLoop(runner, loader, samples_interval=None, **options)
    runner.save_training_state = lambda path, step: save(runner, path, step)
    return runner


def save(runner: SimpleNamespace, path: Path, step: int) -> None:
    extra = {"meta": {"step": step}, **runner.loop.training_state(step)}
    runner.strategy.save_checkpoint(str(path), extra_ckpt=extra)


def resume(runner: SimpleNamespace, path: Path) -> None:
    checkpoint = runner.strategy.resume(str(path))
    runner.loop.resume_at(checkpoint["meta"]["step"])
    runner.loop.load_training_state(checkpoint, str(path))


def steps(runner: SimpleNamespace, number: int) -> list[dict[str, float]]:
    """What so many steps from here on give."""
    found = []
    runner.model.train()
    for batches in runner.loop.steps():
        found.append(runner.loop.run_step(batches))
        runner.loop._iter += 1
        if len(found) == number:
            break
    return found
