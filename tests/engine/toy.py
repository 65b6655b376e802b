"""A run without recipe, tokenizer and files: groups in memory, small models, and a loop around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from xrlhf.data.loader import StepLoader
from xrlhf.data.plan import GroupStream
from xrlhf.devices import CpuDevice
from xrlhf.engine.loops import GroupTrainLoop
from xrlhf.engine.strategies import SingleStrategy
from xrlhf.losses import RankingLoss
from xrlhf.models import (
    PolicyModel,
    RewardModel,
    backbone_from_config,
    backbone_from_pretrained,
    causal_lm_from_config,
)
from xrlhf.structures import LossOutput, PackedBatch, TokenizedGroup, as_ids

SGD_OF_1 = {"optimizer": {"type": SGD, "lr": 1.0}}


class ToyDataset:
    """Groups in memory, with what loaders and loops ask of a dataset."""

    def __init__(self, groups: Sequence[TokenizedGroup]) -> None:
        self.groups = list(groups)
        self.sizes = [len(self.groups)]
        self.weights = [1.0]
        self.names = ["toy"]
        self.encoder = SimpleNamespace(max_length=64)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> TokenizedGroup:
        return self.groups[index]

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        chosen = self.groups if indices is None else [self.groups[int(i)] for i in indices]
        return np.array([group.num_tokens for group in chosen], dtype=np.int64)

    def num_targets(self, indices: np.ndarray) -> np.ndarray:
        return np.array([num_targets(self.groups[int(i)]) for i in indices], dtype=np.int64)

    def stream(self, seed: int, shuffle: bool = True) -> GroupStream:
        return GroupStream(self.sizes, self.weights, seed=seed, shuffle=shuffle)

    def where(self, index: int) -> str:
        return f"toy row {index}"


def num_targets(group: TokenizedGroup) -> int:
    """Target tokens of all responses, those of the prompt once for each."""
    if group.is_target is None:
        return 0
    of_prompt = int(group.is_target[: len(group.prompt_ids)].sum())
    return int(group.is_target.sum()) + of_prompt * (len(group.response_ids) - 1)


def pairs(number: int = 24, seed: int = 0) -> ToyDataset:
    """Pairs of lengths that differ, of ids below 32; one in four has three responses."""
    generator = np.random.default_rng(seed)

    def ids(longest: int) -> np.ndarray:
        return as_ids(generator.integers(5, 32, generator.integers(1, longest + 1)))

    return ToyDataset(
        [TokenizedGroup(ids(8), tuple(ids(6) for _ in range(3 if i % 4 == 0 else 2)), row=i) for i in range(number)]
    )


def answers(number: int = 24) -> ToyDataset:
    """Groups as :func:`pairs` makes them; the responses are learnt, and some prompt tokens too."""
    generator = np.random.default_rng(5)
    groups = []
    for group in pairs(number).groups:
        mask = np.ones(group.num_tokens, dtype=bool)
        mask[: len(group.prompt_ids)] = generator.random(len(group.prompt_ids)) < 0.2
        mask[0] = False
        groups.append(replace(group, is_target=mask))
    return ToyDataset(groups)


def tiny_policy(loss: nn.Module, **options: Any) -> PolicyModel:
    """A Llama of 16 dimensions; the same weights every time. ``options`` are those of :class:`PolicyModel`."""
    torch.manual_seed(0)
    backbone = causal_lm_from_config(
        "llama",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return PolicyModel(backbone, loss=loss, **options)


def tiny_reward_model(lora_dropout: float | None = None, **options: Any) -> RewardModel:
    """A Llama of 16 dimensions; the same weights every time. ``options`` are those of :class:`RewardModel`."""
    torch.manual_seed(0)
    backbone = backbone_from_config(
        "llama",
        head_init="normal",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    lora = None if lora_dropout is None else {"r": 2, "lora_alpha": 8, "lora_dropout": lora_dropout}
    return RewardModel(backbone, loss=RankingLoss(), lora=lora, **options)


def quantised_reward_model(base: Path) -> RewardModel:
    """Adapters on a Llama of 64 dimensions whose layers are held in 4 bits; ``base`` is where it is kept."""
    torch.manual_seed(0)
    if not base.exists():
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        backbone_from_config("llama", vocab_size=32, pad_token_id=0, **sizes).save_pretrained(base)
    torch.manual_seed(1)
    backbone = backbone_from_pretrained(str(base), head_init="normal", quantization={"load_in_4bit": True})
    return RewardModel(backbone, loss=RankingLoss(), lora={"r": 4, "lora_alpha": 16})


class ToyModel(nn.Module):
    """One weight; the loss of a group is the weight times the group's position in its dataset plus one."""

    def __init__(self, metrics: Callable[[PackedBatch], dict[str, Tensor]] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.metrics = metrics or (lambda batch: {})

    def group_losses(self, batch: PackedBatch) -> Tensor:
        return self.weight * (batch.group_ids + 1)

    def forward(self, batch: PackedBatch) -> LossOutput:
        losses = self.group_losses(batch)
        return LossOutput((losses * batch.group_weights).sum(), losses.detach(), self.metrics(batch))

    def checkpoint_names(self) -> set[str]:
        return set(self.state_dict())


def run_of(
    model: nn.Module,
    dataset: ToyDataset,
    work_dir: Path,
    *,
    max_steps: int,
    groups_per_step: int = 8,
    token_budget: int = 64,
    optim_wrapper: dict[str, Any] | None = None,
    param_scheduler: list[dict[str, Any]] | None = None,
    strategy: SingleStrategy | None = None,
    seed: int = 0,
    shuffle: bool = True,
) -> SimpleNamespace:
    """A runner with as much as a loop needs: ``strategy``, ``loop``, and ``called``, the hooks' names in order."""
    if strategy is None:
        strategy = SingleStrategy(
            device=CpuDevice(),
            work_dir=str(work_dir),
            env_kwargs={"launcher": "none", "randomness": {"seed": seed}},
            experiment_name=str(work_dir),
        )
    strategy.prepare(
        model,
        optim_wrapper=optim_wrapper or SGD_OF_1,
        param_scheduler=param_scheduler,
        dispatch_kwargs={"max_iters": max_steps},
    )
    called: list[str] = []
    runner = SimpleNamespace(
        strategy=strategy,
        model=strategy.model,
        rank=strategy.rank,
        val_loop=None,
        called=called,
        call_hook=lambda name, **kwargs: called.append(name),
    )
    loader = StepLoader(
        dataset,  # type: ignore[arg-type]
        groups_per_step=groups_per_step,
        token_budget=token_budget,
        seed=seed,
        shuffle=shuffle,
        rank=strategy.rank,
        world_size=strategy.world_size,
    )
    loader.makes_mismatched = getattr(model, "needs_divergence", False)
    runner.loop = GroupTrainLoop(runner, loader, max_steps=max_steps)
    return runner


def train(runner: SimpleNamespace, start: int = 0) -> list[dict[str, float]]:
    """What every step from ``start`` on returned for the log."""
    loop = runner.loop
    runner.model.train()
    return [loop.run_step(batches) for batches in loop.dataloader.steps(start, loop.max_iters)]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]
