"""Validation: exact metrics over a whole set, whatever the number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.runner import BaseLoop

from xrlhf.data.loader import EvalLoader
from xrlhf.data.prompts import PromptEvalLoader
from xrlhf.engine.rollout import POLICY_FOLDER, draw_and_reward, prompt_rows, update_servers
from xrlhf.errors import ConfigError
from xrlhf.evaluation.batches import SetMetrics, evaluate_batches
from xrlhf.evaluation.set_loss import SetLoss
from xrlhf.registry import LOOPS
from xrlhf.rl.samples import RewardSource, Rollouts

__all__ = ["GroupValLoop", "LossValLoop", "RewardValLoop"]


class _ValLoop(BaseLoop):
    """Runs the model on every group of the validation set once.

    Args:
        runner: The runner.
        dataloader: Gives this process's share of the set.
        evaluator: Unused; mmengine hands one to every validation loop.
    """

    def __init__(self, runner: Any, dataloader: EvalLoader, evaluator: Any = None) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> dict[str, float]:
        """Metrics over the set."""
        runner = self.runner
        runner.call_hook("before_val")
        runner.call_hook("before_val_epoch")
        runner.strategy.module.eval()
        results = self._metrics(runner.strategy)
        runner.call_hook("after_val_epoch", metrics=results)
        runner.call_hook("after_val")
        return results

    def _metrics(self, strategy: Any) -> dict[str, float]:
        """Of the whole set, the same on every process."""
        raise NotImplementedError


@LOOPS.register_module()
class GroupValLoop(_ValLoop):
    """Scores every group of the validation set once: overall, and per source where there are several.

    Args:
        runner: The runner.
        dataloader: Gives this process's share of the set.
        evaluator: Unused; mmengine hands one to every validation loop.
    """

    def _metrics(self, strategy: Any) -> dict[str, float]:
        metrics = evaluate_batches(strategy.module, self.dataloader, strategy.device, wrapped=strategy.model)
        merged = SetMetrics()
        for state in strategy.gather_objects(metrics.state()):
            merged.merge(state)
        names = self.dataloader.dataset.names
        results = merged.compute(names)
        if len(names) == 1:
            results = {name: value for name, value in results.items() if "/" not in name}
        return results


@LOOPS.register_module()
class LossValLoop(_ValLoop):
    """The loss and its metrics on every group of the validation set, as training has them in a step: for policies.

    Args:
        runner: The runner.
        dataloader: Gives this process's share of the set.
        evaluator: Unused; mmengine hands one to every validation loop.
    """

    def _metrics(self, strategy: Any) -> dict[str, float]:
        own = SetLoss()
        own.add(strategy.module, self.dataloader, strategy.device, strategy.model, strategy.sum_over_ranks)
        return SetLoss.of_all(strategy.gather_objects(own.sums)).compute()


@LOOPS.register_module()
class RewardValLoop(_ValLoop):
    """The mean reward of answers to held-out prompts: for reinforcement learning.

    Answers are drawn by the recipe's ``val_rollouts``, or as in training where it has none; always with the same
    random numbers, so that validations differ by the policy alone.

    Args:
        runner: The runner, with its ``val_rollouts`` and ``reward_source``.
        dataloader: The prompts.
        evaluator: Unused; mmengine hands one to every validation loop.
        num_answers: Answers to each prompt.

    Raises:
        ConfigError: ``num_answers`` is below 1.
    """

    def __init__(self, runner: Any, dataloader: PromptEvalLoader, evaluator: Any = None, num_answers: int = 1) -> None:
        super().__init__(runner, dataloader)  # type: ignore[arg-type]
        if num_answers < 1:
            raise ConfigError(f"RewardValLoop: num_answers must be at least 1, got {num_answers}")
        self.num_answers = num_answers

    def _metrics(self, strategy: Any) -> dict[str, float]:
        runner = self.runner
        folder = Path(runner.work_dir) / POLICY_FOLDER
        return self.reward_metrics(strategy, runner.val_rollouts, runner.reward_source, folder)

    def reward_metrics(
        self, strategy: Any, rollouts: Rollouts, rewards: RewardSource, folder: Path
    ) -> dict[str, float]:
        """What the rewards say of the answers, and how these are; the same on every process.

        Args:
            strategy: With the policy prepared, or :class:`~xrlhf.engine.one_process.OneProcess`.
            rollouts: Draws answers.
            rewards: Rewards them.
            folder: Where weights are written for servers, see :func:`~xrlhf.engine.rollout.update_servers`.

        Raises:
            TrainingError: Answers or rewards failed.
        """
        dataset = self.dataloader.dataset
        rows = prompt_rows(dataset, range(len(dataset)))
        update_servers(strategy, rollouts, folder)
        drawn = draw_and_reward(strategy, rollouts, rewards, rows, self.num_answers, strategy.seed)
        answers = [sample for samples in drawn.samples for sample in samples]
        counted = ~np.isnan(drawn.rewards)
        means = {"reward": float(drawn.rewards[counted].mean())} if counted.any() else {}
        return {
            **means,
            **drawn.parts,
            "answer_length": float(np.mean([len(answer.ids) for answer in answers])),
            "end_share": float(np.mean([answer.ending == "stop" for answer in answers])),
            "num_answers": float(len(answers)),
        }
