"""A rollout on all processes: each draws and rewards its share, and all of them know everything of it afterwards."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xrlhf.data.packing import pack
from xrlhf.data.permutation import derive_key
from xrlhf.data.plan import deal
from xrlhf.data.prompts import PromptDataset, PromptLoader
from xrlhf.engine.policy_folder import write_policy_folder
from xrlhf.errors import TrainingError
from xrlhf.rl.experience import Appraiser, Experience, drawn_group
from xrlhf.rl.samples import PromptRow, RewardSource, Rollouts, Sample
from xrlhf.structures import TokenizedGroup

__all__ = ["POLICY_FOLDER", "Drawn", "RolloutMaker", "draw_and_reward", "prompt_rows", "update_servers"]

POLICY_FOLDER = "policy_weights"
"""Where in a run's directory the policy is written for servers."""

_CHUNK = 256


@dataclass(frozen=True)
class Drawn:
    """Answers and rewards of some prompts, in the order in which they were asked for.

    Args:
        rows: P prompts.
        samples: K answers to each.
        rewards: (P, K) float64, NaN where no source said anything.
        seconds: What took how long on the slowest process, by the names that the log shows.
        parts: Mean reward of each source by the name that the log shows, where there are several.
    """

    rows: list[PromptRow]
    samples: list[list[Sample]]
    rewards: np.ndarray
    seconds: dict[str, float]
    parts: dict[str, float]


def prompt_rows(dataset: PromptDataset, positions: Sequence[int] | np.ndarray) -> list[PromptRow]:
    """The prompts at some positions of a data set, as rollouts and rewards take them."""
    return [
        PromptRow(prompt.prompt, prompt.ids, int(position), prompt.meta)
        for position in positions
        for prompt in [dataset[int(position)]]
    ]


def draw_and_reward(
    strategy: Any, rollouts: Rollouts, rewards: RewardSource, rows: list[PromptRow], k: int, key: int
) -> Drawn:
    """Draw and reward answers, every process those of its share of the prompts; all know all of them afterwards.

    Raises:
        TrainingError: Answers or rewards failed on a process; it is raised on all of them.
    """
    mine = range(strategy.rank, len(rows), strategy.world_size)
    own = [rows[position] for position in mine]
    samples: list[list[Sample]] = []
    found = np.empty((0, k))
    parts: Mapping[str, np.ndarray] = {}
    began = drawn = time.perf_counter()
    failure: TrainingError | None = None
    try:
        # Also by a process that has nothing to draw: all put the weights together.
        with _weights_of(strategy, rollouts):
            samples = rollouts.sample(own, k, key=key) if own else []
        drawn = time.perf_counter()
        if own:
            found, parts = _rewarded(rewards, own, samples)
    except TrainingError as error:
        # The others wait for this process: they have to hear of it.
        failure = error
    seconds = {"seconds_rollout": drawn - began, "seconds_reward": time.perf_counter() - drawn}
    everyone = strategy.gather_objects((None if failure is None else str(failure), samples, found, seconds, parts))
    if failure is not None:
        raise failure
    if failures := [of_rank[0] for of_rank in everyone if of_rank[0] is not None]:
        raise TrainingError(failures[0])
    all_samples: list[list[Sample]] = [[] for _ in rows]
    all_rewards = np.full((len(rows), k), np.nan)
    for rank, (_, of_rank, given, *_) in enumerate(everyone):
        for position, answers, row in zip(range(rank, len(rows), strategy.world_size), of_rank, given, strict=True):
            all_samples[position], all_rewards[position] = answers, row
    slowest = {name: max(of_rank[3][name] for of_rank in everyone) for name in seconds}
    return Drawn(rows, all_samples, all_rewards, slowest, _means_of_sources([of_rank[4] for of_rank in everyone]))


def _weights_of(strategy: Any, rollouts: Rollouts) -> contextlib.AbstractContextManager[None]:
    """What holds the weights whole that answers are drawn from, where they are drawn from those in training."""
    policy = getattr(rollouts, "policy", None)
    return contextlib.nullcontext() if policy is None else strategy.whole_weights(policy.hf_model)


def _rewarded(
    rewards: RewardSource, rows: list[PromptRow], samples: list[list[Sample]]
) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """The rewards, and what each source said where there is a table of several."""
    table = getattr(rewards, "table", None)
    if table is None:
        return np.asarray(rewards.rewards(rows, samples), dtype=np.float64), {}
    given = table(rows, samples)
    return np.asarray(given.total, dtype=np.float64), given.by_name if len(given.by_name) > 1 else {}


def _are_alike(rewards: np.ndarray) -> bool:
    """Whether (K,) rewards say nothing of which answer is better; NaN where there is none."""
    known = rewards[~np.isnan(rewards)]
    return len(known) < 2 or bool((known == known[0]).all())


def _means_of_sources(of_ranks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The mean reward of each source over all processes; one that said nothing is left out."""
    means = {}
    for name in next((parts for parts in of_ranks if parts), {}):
        said = np.concatenate([parts[name].ravel() for parts in of_ranks if parts]).astype(np.float64)
        if not np.isnan(said).all():
            means[f"reward_{name}"] = float(np.nanmean(said))
    return means


def update_servers(strategy: Any, rollouts: Rollouts, folder: Path) -> None:
    """Give the policy's weights to rollouts that draw with a copy of them (``update_weights``); others need nothing.

    Args:
        strategy: The strategy, prepared; every process takes part.
        rollouts: Draws answers.
        folder: Where weights are written; whoever reads them must see it under the same path.
    """
    update = getattr(rollouts, "update_weights", None)
    if update is not None:
        write_policy_folder(strategy, folder, adapter=getattr(rollouts, "update", "weights") == "adapter")
        strategy.on_first_rank(lambda: update(folder))


class RolloutMaker:
    """Makes what is learnt from, rollout by rollout.

    With ``max_redraws`` prompts whose answers are all rewarded alike, from which a method that compares the answers to
    a prompt learns nothing, give way to others: as many further prompts are drawn as there are such ones, those of them
    whose answers differ take their places, and so on while there are places left. Further prompts come in an order that
    follows from the seed and the rollout's number alone, and none comes twice in a rollout; so a rollout does not
    depend on those before it but by the policy. This is the dynamic sampling of Yu et al. 2025, "DAPO", arXiv
    2503.14476, section 3.2, which takes further prompts from those of later steps.

    Args:
        strategy: The strategy, prepared.
        loader: Which prompts a rollout holds.
        rollouts: Draws answers.
        rewards: Rewards them.
        appraiser: Makes advantages of that.
        num_answers: Answers to each prompt.
        folder: Where weights are written for servers, see :func:`update_servers`.
        max_redraws: How often further prompts are drawn, at most.

    Attributes:
        drawn: The answers of the last rollout, for whoever wants to look at them.
    """

    def __init__(
        self,
        strategy: Any,
        loader: PromptLoader,
        rollouts: Rollouts,
        rewards: RewardSource,
        appraiser: Appraiser,
        num_answers: int,
        folder: Path,
        max_redraws: int = 0,
    ) -> None:
        self.max_redraws = max_redraws
        self.folder = folder
        self.strategy = strategy
        self.loader = loader
        self.rollouts = rollouts
        self.rewards = rewards
        self.appraiser = appraiser
        self.num_answers = num_answers
        self.drawn: Drawn | None = None

    def make(self, number: int) -> Experience:
        """Draw, reward and appraise rollout ``number``.

        Raises:
            TrainingError: Answers or rewards failed.
        """
        strategy = self.strategy
        began = time.perf_counter()
        update_servers(strategy, self.rollouts, self.folder)
        updated = time.perf_counter() - began
        drawn, counts = self._draw(number)
        self.drawn = drawn
        began = time.perf_counter()
        groups = [drawn_group(row, samples) for row, samples in zip(drawn.rows, drawn.samples, strict=True)]
        values = self._token_values(groups)
        experience = self.appraiser.appraise(number, groups, drawn.samples, drawn.rewards, values)
        seconds = {**drawn.seconds, "seconds_log_probs": time.perf_counter() - began}
        seconds["seconds_rollout"] += updated
        return Experience(number, experience.groups, {**experience.metrics, **drawn.parts, **counts, **seconds})

    def _draw(self, number: int) -> tuple[Drawn, dict[str, float]]:
        """The answers of a rollout, and what the log shows of prompts that gave way to others."""
        positions = self.loader.prompt_ids(number)
        key = derive_key(self.strategy.seed, "rollout", number) >> 1
        drawn = self._drawn_for(positions, key)
        if not self.max_redraws:
            return drawn, {}
        rows, samples, rewards = list(drawn.rows), list(drawn.samples), drawn.rewards.copy()
        seconds = dict(drawn.seconds)
        alike = [place for place, of_prompt in enumerate(rewards) if _are_alike(of_prompt)]
        counts = {"alike_share": len(alike) / len(rows), "num_redrawn": 0.0}
        if not np.isnan(rewards).all():
            counts["drawn_reward"] = float(np.nanmean(rewards))
        further = self._further_prompts(number, positions)
        for _ in range(self.max_redraws):
            chosen = list(itertools.islice(further, len(alike)))
            if not chosen:
                break
            more = self._drawn_for(np.array(chosen), key)
            counts["num_redrawn"] += len(chosen)
            seconds = {name: seconds[name] + more.seconds[name] for name in seconds}
            differing = [place for place, of_prompt in enumerate(more.rewards) if not _are_alike(of_prompt)]
            for place, source in zip(alike, differing, strict=False):
                rows[place], samples[place], rewards[place] = (
                    more.rows[source],
                    more.samples[source],
                    more.rewards[source],
                )
            alike = alike[len(differing) :]
        counts["num_left_alike"] = float(len(alike))
        return Drawn(rows, samples, rewards, seconds, drawn.parts), counts

    def _drawn_for(self, positions: np.ndarray, key: int) -> Drawn:
        rows = prompt_rows(self.loader.dataset, positions)
        return draw_and_reward(self.strategy, self.rollouts, self.rewards, rows, self.num_answers, key)

    def _further_prompts(self, number: int, positions: np.ndarray) -> Iterator[int]:
        """Prompts that a rollout does not hold, each once."""
        stream = self.loader.dataset.stream(derive_key(self.strategy.seed, "further prompts", number))
        held = {int(position) for position in positions}
        for start in range(0, stream.epoch_size, _CHUNK):
            for found in stream(start, min(start + _CHUNK, stream.epoch_size)):
                if int(found) not in held:
                    held.add(int(found))
                    yield int(found)

    def _token_values(self, groups: Sequence[TokenizedGroup]) -> list[Mapping[str, np.ndarray]]:
        """What policy, critic and reference say of the tokens of each group; every process computes a share."""
        strategy = self.strategy
        lengths = np.array([group.num_tokens for group in groups])
        plan = deal(
            np.arange(len(groups)),
            lengths,
            world_size=strategy.world_size,
            token_budget=self.loader.token_budget,
        )
        was_training = strategy.module.training
        strategy.module.eval()
        found: dict[int, Mapping[str, np.ndarray]] = {}
        try:
            for micro_batch in plan.micro_batches[strategy.rank]:
                members = [int(position) for position in micro_batch.group_ids]
                batch = pack([groups[position] for position in members], weights=micro_batch.weights)
                with torch.no_grad():
                    values = strategy.model(batch.to(strategy.device.torch_device), mode="rollout")
                strategy.device.mark_step()
                on_host = {name: of.float().cpu().numpy() for name, of in values.items()}
                ends = np.cumsum([sum(len(ids) for ids in groups[position].response_ids) for position in members])
                parts = {name: np.split(of, ends[:-1]) for name, of in on_host.items()}
                if micro_batch.weights.any():
                    found |= {p: {name: of[i] for name, of in parts.items()} for i, p in enumerate(members)}
        finally:
            strategy.module.train(was_training)
        everywhere: dict[int, Mapping[str, np.ndarray]] = {}
        for of_rank in strategy.gather_objects(found):
            everywhere |= of_rank
        return [everywhere[position] for position in range(len(groups))]
