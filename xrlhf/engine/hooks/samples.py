"""What the policy answers to fixed prompts while it is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from xrlhf.data.reasons import RowError
from xrlhf.errors import ConfigError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.generation import Generator, Sampling
from xrlhf.models.policy_model import PolicyModel
from xrlhf.registry import HOOKS
from xrlhf.structures import Group, Message

__all__ = ["SampleHook"]

logger = logging.getLogger("xrlhf")

_SHOWN = 300


@HOOKS.register_module()
class SampleHook(Hook):
    """Writes answers to fixed prompts to the log, to TensorBoard and to ``samples.jsonl`` of the run's directory.

    Every time the same random numbers are drawn, so that answers differ by what was learnt; training is not touched.
    Sums over answers (their mean length, the share that the model ended itself, the mean reward) are logged as
    ``sample/...``.

    Args:
        prompts: Questions, or conversations that end with one.
        interval: Steps between two rounds; the last step is one always.
        sampling: Options of :class:`~xrlhf.models.generation.Sampling`.
        reward: A reward model's directory or hub name, to score the answers with; None for no scores.
        seed: Of the draws.

    Raises:
        ConfigError: No prompt, or one that is neither text nor messages; a wrong interval or sampling option.
    """

    priority = "LOW"

    def __init__(
        self,
        prompts: Sequence[str | list[Message]],
        interval: int = 500,
        sampling: Mapping[str, Any] | None = None,
        reward: str | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, (str, list)) and p for p in prompts):
            raise ConfigError("SampleHook needs prompts: a list of questions, or of lists of messages")
        if interval < 1:
            raise ConfigError(f"SampleHook: interval must be at least 1 step, got {interval}")
        self.prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else list(p) for p in prompts]
        self.interval = interval
        try:
            self.sampling = Sampling(**{"max_new_tokens": 128, **(sampling or {})})
        except TypeError as error:
            raise ConfigError(f"SampleHook: sampling: {error}") from error
        self.reward = reward
        self.seed = seed
        self._scorer: Scorer | None = None

    def before_train(self, runner: Any) -> None:
        """Refuse what cannot be sampled from, and answer once before the first step.

        Raises:
            ConfigError: The model is no policy, or its weights are split among processes.
        """
        strategy = runner.strategy
        if not isinstance(strategy.module, PolicyModel):
            raise ConfigError(f"SampleHook: a {type(strategy.module).__name__} writes no answers: leave the hook out")
        if not strategy.keeps_model_whole:
            raise ConfigError(
                f"SampleHook: {type(strategy).__name__} splits the weights among processes, so that none can write an "
                "answer alone: leave the hook out, or choose strategy 'ddp'"
            )
        if runner.rank == 0 and self.reward is not None:
            self._scorer = Scorer.from_pretrained(self.reward, device=strategy.device)
        if not runner.train_loop.iter:
            self._sample(runner, 0)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Answer where a round is due."""
        step = batch_idx + 1
        if step % self.interval == 0 or step == runner.max_iters:
            self._sample(runner, step)

    def _sample(self, runner: Any, step: int) -> None:
        if runner.rank == 0:
            rows = self._rows(runner)
            self._write(runner, step, rows)
        runner.strategy.barrier()

    def _rows(self, runner: Any) -> list[dict[str, Any]]:
        tokenizer = runner.train_loop.dataloader.dataset.encoder.tokenizer
        rows: list[dict[str, Any]] = []
        with torch.random.fork_rng(), runner.strategy.module.generating() as model:
            generator = Generator(model, tokenizer)
            for number, prompt in enumerate(self.prompts):
                torch.manual_seed(self.seed + number)
                (answer,) = generator.answer(generator.fit(prompt, self.sampling.max_new_tokens), self.sampling)
                rows.append(
                    {
                        "prompt": prompt,
                        "response": answer.text,
                        "num_tokens": len(answer.ids),
                        "ending": answer.ending,
                    }
                )
        if self._scorer is not None:
            groups = [Group(row["prompt"], ([{"role": "assistant", "content": row["response"]}],)) for row in rows]
            for row, scores in zip(rows, self._scorer.score(groups), strict=True):
                row["reward"] = None if isinstance(scores, RowError) else scores[0]
        return rows

    def _write(self, runner: Any, step: int, rows: list[dict[str, Any]]) -> None:
        with (Path(runner.work_dir) / "samples.jsonl").open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        for row in rows:
            reward = "" if row.get("reward") is None else f" (reward {row['reward']:.3f})"
            asked, said = row["prompt"][-1]["content"], row["response"]
            logger.info("step %d, asked: %s -> %s%s", step, _short(asked), _short(said) or "nothing", reward)
        means = {
            "sample/num_tokens": _mean([row["num_tokens"] for row in rows]),
            "sample/stopped": _mean([row["ending"] == "stop" for row in rows]),
        }
        rewards = [row["reward"] for row in rows if row.get("reward") is not None]
        if rewards:
            means["sample/reward"] = _mean(rewards)
        runner.visualizer.add_scalars(means, step=step)
        text = "\n\n".join(f"**{_short(row['prompt'][-1]['content'])}**\n\n{row['response']}" for row in rows)
        for backend in runner.visualizer._vis_backends.values():
            if hasattr(backend.experiment, "add_text"):
                backend.experiment.add_text("samples", text, step)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _short(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
