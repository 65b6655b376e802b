"""mmengine's FlexibleRunner, driven in optimizer steps."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.hooks import ParamSchedulerHook, RuntimeInfoHook
from mmengine.runner import FlexibleRunner
from torch import nn

from xrlhf.config.dump import dump_recipe, recipe_text
from xrlhf.engine.checkpoint import CheckpointFile, find_checkpoints, newest_valid
from xrlhf.engine.environment import ENVIRONMENT, environment_report
from xrlhf.engine.hooks import StepCheckpointHook, StepLoggerHook, StepTimerHook, ThroughputHook
from xrlhf.engine.logging import join_loggers
from xrlhf.engine.loops import GroupTrainLoop
from xrlhf.engine.reference_cache import attach_reference
from xrlhf.engine.stopping import StopRequest
from xrlhf.engine.strategies import SingleStrategy
from xrlhf.errors import CheckpointError
from xrlhf.rl import RewardSource, Rollouts

__all__ = ["GroupRunner"]

logger = logging.getLogger("xrlhf")

_DEFAULT_HOOKS = {
    "runtime_info": {"type": RuntimeInfoHook},
    "timer": {"type": StepTimerHook},
    "throughput": {"type": ThroughputHook},
    "logger": {"type": StepLoggerHook},
    "param_scheduler": {"type": ParamSchedulerHook},
    "checkpoint": {"type": StepCheckpointHook},
}


class GroupRunner(FlexibleRunner):
    """Trains, resumes and validates a recipe whose parts :func:`xrlhf.engine.build.build_runner` has built.

    It differs from its base in four things: a checkpoint is found, verified and loaded strictly before training; what
    resumes is a step number, not a replayed loader; the recipe is dumped as plain literals with secrets masked; and
    the start of the log fits a screen.
    """

    strategy: SingleStrategy
    # mmengine's own attributes, which hold a config first and then what was built from it.
    model: Any
    optim_wrapper: Any
    param_schedulers: Any
    _train_loop: Any
    _val_loop: Any
    rollouts: Rollouts
    """Draws answers; what trains on given data has none."""
    val_rollouts: Rollouts
    reward_source: RewardSource

    @property
    def was_stopped(self) -> bool:
        """Whether the run ended before its last step because a process was asked to stop."""
        return bool(self.train_loop.is_stopping and self.train_loop.iter < self.train_loop.max_iters)

    def train(self, stop_request: StopRequest | None = None) -> nn.Module:
        """Train to the end of the run, from the beginning or from where it stopped.

        Args:
            stop_request: Looked at in every step; when it is made on any process, all save and stop after that step.
                Stop signals are listened to while steps are done.
        """
        self._train_loop = self.build_train_loop(self._train_loop)
        self._train_loop.stop_request = stop_request
        if self._val_loop is not None:
            self._val_loop = self.build_val_loop(self._val_loop)
        self.strategy.prepare(
            self.model,
            optim_wrapper=self.optim_wrapper,
            param_scheduler=self.param_schedulers,
            dispatch_kwargs={"max_iters": self.train_loop.max_iters},
        )
        self.model = self.strategy.model
        self.optim_wrapper = self.strategy.optim_wrapper
        self.param_schedulers = self.strategy.param_schedulers
        self._attach_references()
        self.load_or_resume()
        self._log_run()
        self.call_hook("before_run")
        try:
            with nullcontext() if stop_request is None else stop_request.listening():
                model = self.train_loop.run()
        except BaseException:
            self.strategy.leave_saving()
            raise
        self.strategy.finish_saving()
        self.call_hook("after_run")
        return model

    def _attach_references(self) -> None:
        """While the model has the weights it began with: what a reference that is kept on disk says of the data."""
        if getattr(self.strategy.module, "reference_kind", None) != "cached":
            return
        loader = self.train_loop.dataloader
        attach_reference(self.strategy, loader.dataset, token_budget=loader.token_budget)
        if self.val_loop is not None:
            attach_reference(self.strategy, self.val_loop.dataloader.dataset, token_budget=loader.token_budget)

    def load_or_resume(self) -> None:
        """Load what the run was told to start from.

        ``resume=True`` needs a checkpoint, ``resume="auto"`` starts afresh where there is none, and a path names one.

        Raises:
            CheckpointError: Nothing to resume from, or a checkpoint that does not belong to the recipe.
        """
        work_dir = Path(self.work_dir)
        if isinstance(self._resume, str) and self._resume != "auto":
            self._resume_from(Path(self._resume), check=True)
            self._warn_of_later_ones(work_dir)
        elif self._resume:
            # The first process looks, so that all of them go on from the same step.
            found: list[CheckpointFile | None] = self.strategy.gather_objects(
                newest_valid(work_dir) if self.rank == 0 else None
            )
            if found[0] is not None:
                self._resume_from(found[0].path, check=False)
            else:
                logger.info("no checkpoint in %s: starting from the beginning", work_dir)
        if self._load_from is not None and not self.train_loop.iter:
            self.strategy.load_checkpoint(self._load_from)
            logger.info("loaded the weights of %s", self._load_from)

    def _resume_from(self, path: Path, *, check: bool) -> None:
        checkpoint = self.strategy.resume(str(path), check=check)
        meta = checkpoint["meta"]
        loop: GroupTrainLoop = self.train_loop
        if missing := [name for name in ("step", *self._data_order) if name not in meta]:
            raise CheckpointError(f"{path} does not say its {missing[0]}: it can serve --load-from only")
        for name, now in self._data_order.items():
            if meta[name] != now:
                raise CheckpointError(
                    f"{path} was trained with {name}={meta[name]} and the recipe says {now}: the same data order "
                    "cannot go on. Use the same value, or --load-from to start a new run from these weights"
                )
        loop.resume_at(meta["step"])
        loop.load_training_state(checkpoint, str(path))
        logger.info("resumed from %s at step %d of %d", path, meta["step"], loop.max_iters)
        if meta["world_size"] != self.world_size:
            logger.info(
                "saved by %d process(es), goes on with %d: the same groups every step, other dropout",
                meta["world_size"],
                self.world_size,
            )

    def _warn_of_later_ones(self, work_dir: Path) -> None:
        step = self.train_loop.iter
        later = [item.path.name for item in find_checkpoints(work_dir) if item.step > step]
        if later:
            logger.warning(
                "%s holds %s from beyond step %d, which a plain --resume will prefer to what this run saves before "
                "that step: move it away, or choose another --work-dir",
                work_dir,
                ", ".join(later[:3]),
                step,
            )

    def _log_run(self) -> None:
        loop: GroupTrainLoop = self.train_loop
        sizes = [(p.numel(), p.requires_grad) for p in self.strategy.module.parameters()]
        logger.info(
            "%s parameters, %s of them trained; %s; files go to %s",
            f"{sum(size for size, _ in sizes):,}",
            f"{sum(size for size, is_trained in sizes if is_trained):,}",
            loop.length_line(),
            self.work_dir,
        )
        if loop.iter >= loop.max_iters:
            logger.info("all %d steps are done already: nothing is left to train", loop.max_iters)

    @cached_property
    def _data_order(self) -> dict[str, Any]:
        """What decides which groups a step holds, beside the step's number; it sums over all groups of the data."""
        loader = self.train_loop.dataloader
        return {
            "seed": self.seed,
            "groups_per_step": loader.groups_per_step,
            "shuffle": loader.stream.shuffle,
            "dataset_sizes": list(loader.dataset.sizes),
            "dataset_weights": list(loader.dataset.weights),
            "dataset_tokens": int(loader.dataset.num_tokens().sum()),
        }

    def save_training_state(self, path: Path, step: int) -> None:
        """Begin to save everything that going on after ``step`` steps needs; the strategy's to finish."""
        meta = {"step": step, "recipe": recipe_text(self.cfg), **self._data_order}
        extra = {"meta": meta, **self.train_loop.training_state(step)}
        self.strategy.save_checkpoint(str(path), extra_ckpt=extra, overlap=True)

    def dump_config(self) -> None:
        """Write the resolved recipe into the run's directory; a recipe that lies there itself is not overwritten."""
        if self.rank != 0:
            return
        source = Path(self.cfg.filename) if self.cfg.filename else Path(f"{self.timestamp}.py")
        target = Path(self.work_dir) / source.name
        if target.resolve() == source.resolve():
            target = target.with_name(f"{source.stem}_resolved.py")
        dump_recipe(self.cfg, target)

    def _log_env(self) -> None:
        # mmengine gives a file to the first process alone.
        join_loggers(self.strategy.logger, Path(self.log_dir) / f"rank_{self.rank}.log" if self.rank else None)
        logger.debug("recipe:\n%s", recipe_text(self.cfg))
        if self.rank == 0:
            (Path(self.log_dir) / ENVIRONMENT).write_text("\n".join(environment_report()) + "\n", encoding="utf-8")

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register the recipe's hooks, and those that it does not mention; None leaves one out."""
        for hook in {**_DEFAULT_HOOKS, **(hooks or {})}.values():
            if hook is not None:
                self.register_hook(hook)

    def get_hooks_info(self) -> str:
        """The hooks by name: mmengine's own list fills a screen."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)
