"""Reinforcement learning, counted in optimizer steps: answers are drawn, rewarded, and learnt from, and again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xrlhf.config.resolve import find_component
from xrlhf.data.loader import StepBatches
from xrlhf.data.packing import pack
from xrlhf.data.permutation import Permutation, derive_key
from xrlhf.data.plan import deal
from xrlhf.data.prompts import PromptLoader
from xrlhf.engine.checkpoint import checkpoint_name
from xrlhf.engine.hooks.checkpoint import StepCheckpointHook
from xrlhf.engine.loops.train import GroupTrainLoop
from xrlhf.engine.rollout import POLICY_FOLDER, RolloutMaker
from xrlhf.errors import CheckpointError, ConfigError, TrainingError
from xrlhf.losses.kl import check_kl_estimator
from xrlhf.registry import LOOPS
from xrlhf.rl.advantages import AdvantageEstimator
from xrlhf.rl.experience import Appraiser, Experience
from xrlhf.rl.kl import KLControl
from xrlhf.rl.scores import ScoreRule

__all__ = ["RLTrainLoop"]

logger = logging.getLogger("xrlhf")

_STATE = "reinforcement"


@LOOPS.register_module()
class RLTrainLoop(GroupTrainLoop):
    """Rolls out, and takes ``epochs * minibatches`` optimizer steps on what was drawn; one "iter" is one step.

    Which prompts rollout r holds, what is drawn for them, and how they are dealt to steps follows from (seed, r)
    alone. Steps that are skipped because the policy has moved far enough count as steps: a step's number says which
    rollout it belongs to.

    Args:
        runner: The runner, with its ``rollouts`` and ``reward_source``.
        dataloader: Gives the prompts of every rollout.
        advantage: What makes advantages, as a dict: :class:`~xrlhf.rl.advantages.GAE`,
            :class:`~xrlhf.rl.advantages.GroupRelative` or :class:`~xrlhf.rl.advantages.ReturnsToGo`.
        num_answers: K, answers drawn for each prompt.
        epochs: How often a rollout is gone through.
        minibatches: Optimizer steps of each time; the answers to one prompt stay together.
        max_epochs: Length of the run in passes over the prompts; may be a fraction.
        max_rollouts: Length of the run in rollouts, in place of ``max_epochs``.
        val_interval: Optimizer steps between validations; None validates at the beginning and the end only.
        kl_coef: Weight of the divergence from the reference in the reward of every token, 0 or greater.
        kl_target: Divergence of a whole answer, in nats, that the weight is moved to hold; None keeps the weight.
        kl_horizon: Answers over which it moves.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``, for the divergence in the reward.
        target_kl: The rest of a rollout is skipped after a step that finds the policy further than this from the one
            that drew the answers: the mean over all tokens of the step, in nats. None never skips.
        score_baseline: Subtracted from every reward.
        score_normalise: Normalise rewards by mean and standard deviation of all so far.
        score_clip: Largest size of a score; None for no limit.
        no_end_penalty: What an answer loses that was cut off before it ended, 0 or greater.
        overlong_length: Tokens at which an answer loses all of ``overlong_penalty``, usually the most that may be
            drawn; None for no such penalty.
        overlong_buffer: Tokens before that from which on it loses a part, see :class:`~xrlhf.rl.scores.ScoreRule`.
        overlong_penalty: 0 or greater.
        dynamic_sampling: How often, at most, prompts whose answers are all rewarded alike give way to further ones
            before a rollout is learnt from; 0 keeps them. See :class:`~xrlhf.engine.rollout.RolloutMaker`.
        samples_interval: Rollouts between two entries of answers in ``rollouts.jsonl``, the first rollout included;
            None writes none.
        num_samples: Answers of an entry.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    dataloader: PromptLoader

    def __init__(
        self,
        runner: Any,
        dataloader: PromptLoader,
        *,
        advantage: Mapping[str, Any],
        num_answers: int = 1,
        epochs: int = 1,
        minibatches: int = 1,
        max_epochs: float | None = None,
        max_rollouts: int | None = None,
        val_interval: int | None = None,
        kl_coef: float = 0.0,
        kl_target: float | None = None,
        kl_horizon: float = 10_000,
        kl_estimator: str = "k1",
        target_kl: float | None = None,
        score_baseline: float = 0.0,
        score_normalise: bool = False,
        score_clip: float | None = None,
        no_end_penalty: float = 0.0,
        overlong_length: int | None = None,
        overlong_buffer: int | None = None,
        overlong_penalty: float = 1.0,
        dynamic_sampling: int = 0,
        samples_interval: int | None = 10,
        num_samples: int = 8,
    ) -> None:
        counts = {"num_answers": num_answers, "epochs": epochs, "minibatches": minibatches, "num_samples": num_samples}
        if samples_interval is not None:
            counts["samples_interval"] = samples_interval
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"RLTrainLoop: {name} must be a whole number of at least 1, got {value!r}")
        prompts = dataloader.prompts_per_rollout
        if minibatches > prompts:
            raise ConfigError(
                f"RLTrainLoop: {minibatches} minibatches of {prompts} prompts: the answers to a prompt stay together, "
                f"so take at most {prompts}, or more prompts_per_rollout"
            )
        if not isinstance(dynamic_sampling, int) or dynamic_sampling < 0:
            raise ConfigError(
                f"RLTrainLoop: dynamic_sampling must be a whole number of at least 0, got {dynamic_sampling!r}"
            )
        if dynamic_sampling and num_answers == 1:
            raise ConfigError(
                "RLTrainLoop: dynamic_sampling looks for prompts whose answers are rewarded differently: set "
                "num_answers to 2 or more, or leave it out"
            )
        if (max_epochs is None) == (max_rollouts is None):
            raise ConfigError("train_cfg needs either max_epochs or max_rollouts")
        if target_kl is not None and not target_kl > 0:
            raise ConfigError(f"RLTrainLoop: target_kl must be above 0, or None to skip no step, got {target_kl!r}")
        self.steps_per_rollout = epochs * minibatches
        rollouts = dataloader.num_rollouts(max_epochs) if max_rollouts is None else max_rollouts  # type: ignore[arg-type]
        super().__init__(
            runner,
            dataloader,  # type: ignore[arg-type]
            max_steps=rollouts * self.steps_per_rollout,
            val_interval=val_interval,
        )
        self.num_answers = num_answers
        self.minibatches = minibatches
        self.target_kl = target_kl
        self.dynamic_sampling = dynamic_sampling
        self.samples_interval = samples_interval
        self.num_samples = num_samples
        self.estimator: AdvantageEstimator = _built(advantage)
        self.appraiser = Appraiser(
            self.estimator,
            ScoreRule(
                score_baseline,
                score_normalise,
                score_clip,
                no_end_penalty,
                overlong_length,
                overlong_buffer,
                overlong_penalty,
            ),
            KLControl(kl_coef, kl_target, kl_horizon),
            check_kl_estimator("RLTrainLoop", "kl_estimator", kl_estimator),
        )
        self._experience: Experience | None = None
        self._is_far = False
        self._num_stopped_early = 0

    @property
    def max_epochs(self) -> int:
        """Passes over the prompts, rounded up."""
        prompts = self._max_steps // self.steps_per_rollout * self.dataloader.prompts_per_rollout
        return -(-prompts // self.dataloader.stream.epoch_size)

    @property
    def epoch(self) -> int:
        return (
            self._iter
            // self.steps_per_rollout
            * self.dataloader.prompts_per_rollout
            // (self.dataloader.stream.epoch_size)
        )

    def length_line(self) -> str:
        prompts, in_data = self.dataloader.prompts_per_rollout, len(self.dataloader.dataset)
        return (
            f"{self.max_iters // self.steps_per_rollout:,} rollouts of {prompts} prompts with {self.num_answers} "
            f"answer(s) each, {self.steps_per_rollout} step(s) on each rollout, {in_data:,} prompts in the data"
        )

    def check_model(self, module: Any) -> None:
        """Refuse a model that lacks what the settings ask for.

        Raises:
            ConfigError: It has no critic, or no reference, or a critic that nobody asks.
        """
        has_critic = getattr(module, "critic_kind", None) is not None
        name = type(self.estimator).__name__
        if self.estimator.needs_values and not has_critic:
            raise ConfigError(f"{name} asks a critic: set model.critic='shared', or a dict that names a model")
        if has_critic and not self.estimator.needs_values:
            raise ConfigError(f"{name} asks no critic: leave critic out of the model, or take GAE")
        if self.appraiser.kl.coef and module.reference_kind is None:
            raise ConfigError(
                "train_cfg.kl_coef compares with a reference, and the model has none: set reference='auto'"
            )

    def run(self) -> torch.nn.Module:
        """See :meth:`GroupTrainLoop.run`; a new run is validated before its first step."""
        self.check_model(self.runner.strategy.module)
        if self.runner.val_loop is not None and not self._iter:
            self.runner.val_loop.run()
        return super().run()

    # ------------------------------------------------------------ rollouts and their steps

    def steps(self) -> Iterator[StepBatches]:
        """The steps that are left, each made when the one before is done."""
        runner = self.runner
        maker = RolloutMaker(
            runner.strategy,
            self.dataloader,
            runner.rollouts,
            runner.reward_source,
            self.appraiser,
            self.num_answers,
            Path(runner.work_dir) / POLICY_FOLDER,
            max_redraws=self.dynamic_sampling,
        )
        for step in range(self._iter, self._max_steps):
            number = step // self.steps_per_rollout
            if self._experience is None or self._experience.rollout != number:
                try:
                    self._experience = maker.make(number)
                except TrainingError:
                    self._save_before_the_end()
                    raise
                self._is_far = False
                runner.model.train()
                self._write_samples(maker, step)
            yield self._batches(self._experience, step)

    def _batches(self, experience: Experience, step: int) -> StepBatches:
        """This rank's micro-batches of a step; none where the step is to be skipped."""
        if self._is_far:
            return StepBatches(step, 0, (), 0, 0)
        loader, strategy = self.dataloader, self.runner.strategy
        epoch, minibatch = divmod(step % self.steps_per_rollout, self.minibatches)
        size = len(experience.groups)
        order = Permutation(size, derive_key(strategy.seed, "minibatches", experience.rollout, epoch))(np.arange(size))
        chosen = np.array_split(order, self.minibatches)[minibatch]
        groups = experience.groups
        lengths = np.array([groups[int(position)].num_tokens for position in chosen])
        plan = deal(chosen, lengths, world_size=loader.world_size, token_budget=loader.token_budget)
        batches = tuple(
            pack(
                [groups[int(position)] for position in micro_batch.group_ids],
                group_ids=[groups[int(position)].row for position in micro_batch.group_ids],
                weights=micro_batch.weights,
            )
            for micro_batch in plan.micro_batches[loader.rank]
        )
        counted = [batch for batch in batches if bool(batch.group_weights.any())]
        answers = [ids for position in chosen for ids in groups[int(position)].response_ids]
        return StepBatches(
            step,
            plan.num_groups,
            batches,
            num_responses=sum(int(batch.response_mask.sum()) for batch in counted),
            num_tokens=sum(batch.num_tokens for batch in counted),
            num_targets=sum(len(ids) for ids in answers),
            num_step_responses=len(answers),
        )

    def run_step(self, batches: StepBatches) -> dict[str, float]:
        """One optimizer step, or the skipping of one; returns what the log shows of it and of its rollout."""
        assert self._experience is not None
        if not batches.batches:
            found = self._skipped_step()
        else:
            found = super().run_step(batches)
            found["ratio_min"] = 1 / found.pop("inverse_ratio_max")
            self._is_far = self.target_kl is not None and found["kl_update"] > self.target_kl
        return {**self._experience.metrics, **found, "num_stopped_early": float(self._num_stopped_early)}

    def _skipped_step(self) -> dict[str, float]:
        strategy = self.runner.strategy
        self._num_stopped_early += 1
        was_asked = float(self.stop_request is not None and self.stop_request.is_made)
        asked = strategy.sum_over_ranks(torch.tensor([was_asked], device=strategy.device.torch_device))
        self.is_stopping = bool(asked.item() > 0)
        self.flops_per_second = None if self.count_flops is None else 0.0
        return {"memory": strategy.device.peak_memory_mib()}

    # ------------------------------------------------------------ what is kept

    def training_state(self, step: int) -> dict[str, Any]:
        """Statistics that run on, and the rollout that is being learnt from, if ``step`` lies within one."""
        state: dict[str, Any] = {
            "shape": self._shape,
            "appraiser": self.appraiser.state(),
            "num_stopped_early": self._num_stopped_early,
        }
        if step % self.steps_per_rollout and self._experience is not None:
            state["experience"] = self._experience.state()
            state["is_far"] = int(self._is_far)
        return {_STATE: state}

    @property
    def _shape(self) -> dict[str, int]:
        """What decides which steps a rollout becomes."""
        return {
            "num_answers": self.num_answers,
            "minibatches": self.minibatches,
            "epochs": self.steps_per_rollout // self.minibatches,
        }

    def load_training_state(self, checkpoint: Mapping[str, Any], origin: str) -> None:
        """Take up what :meth:`training_state` gave.

        Raises:
            CheckpointError: It is not of reinforcement learning, or of a run that is divided in another way.
        """
        state = checkpoint.get(_STATE)
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{origin} was saved by another kind of training: it can serve --load-from only")
        for name, now in self._shape.items():
            if state["shape"].get(name) != now:
                raise CheckpointError(
                    f"{origin} was trained with {name}={state['shape'].get(name)} and the recipe says {now}: use the "
                    "same value, or --load-from to start a new run from these weights"
                )
        self.appraiser.load_state(state["appraiser"])
        self._num_stopped_early = int(state["num_stopped_early"])
        if "experience" in state:
            self._experience = Experience.from_state(state["experience"])
            self._is_far = bool(state["is_far"])

    def _save_before_the_end(self) -> None:
        """Keep what was learnt where answers or rewards have failed; every process takes part."""
        runner = self.runner
        hook = next((hook for hook in runner.hooks if isinstance(hook, StepCheckpointHook)), None)
        path = Path(runner.work_dir) / checkpoint_name(self._iter, sharded=hook is not None and hook.sharded)
        runner.strategy.finish_saving()
        # All have to see the same, so the first process looks.
        is_there = runner.strategy.gather_objects(path.exists())[0]
        if self._iter and not is_there:
            runner.save_training_state(path, self._iter)
            runner.strategy.finish_saving()

    def _write_samples(self, maker: RolloutMaker, step: int) -> None:
        """Add some answers of a rollout to the table of samples, where an entry is due."""
        runner, experience, drawn = self.runner, self._experience, maker.drawn
        assert experience is not None
        assert drawn is not None
        if self.samples_interval is None or experience.rollout % self.samples_interval or runner.rank != 0:
            return
        lines = []
        for row, group, samples, rewards in zip(
            drawn.rows, experience.groups, drawn.samples, drawn.rewards, strict=True
        ):
            assert group.token_values is not None
            ends = np.cumsum([len(sample.ids) for sample in samples])[:-1]
            advantages = np.split(group.token_values["advantages"], ends)
            for sample, reward, advantage in zip(samples, rewards, advantages, strict=True):
                entry = {
                    "step": step,
                    "rollout": experience.rollout,
                    "prompt": row.prompt,
                    "answer": sample.text,
                    "reward": None if np.isnan(reward) else float(reward),
                    "advantage": float(advantage.mean()),
                    "num_tokens": len(sample.ids),
                    "ending": sample.ending,
                }
                lines.append(json.dumps(entry, ensure_ascii=False))
        with (Path(runner.work_dir) / "rollouts.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines[: self.num_samples])


def _built(spec: Mapping[str, Any]) -> Any:
    """What makes advantages, from a dict that names it."""
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise ConfigError("RLTrainLoop: advantage is a dict with 'type', such as dict(type=GAE, lam=0.95)")
    options = {name: value for name, value in spec.items() if name != "type"}
    kind = find_component(spec["type"]) if isinstance(spec["type"], str) else spec["type"]
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"RLTrainLoop: advantage: {error}") from error
