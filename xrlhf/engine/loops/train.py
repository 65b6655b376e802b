"""Training, counted in optimizer steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from mmengine.runner import BaseLoop

from xrlhf.data.loader import StepBatches, StepLoader
from xrlhf.data.permutation import derive_key
from xrlhf.engine.memory import naming_what_needs_memory
from xrlhf.engine.stopping import StopRequest
from xrlhf.errors import ConfigError, TrainingError
from xrlhf.evaluation.divergence import divergence_on
from xrlhf.registry import LOOPS
from xrlhf.structures import PackedBatch, metric_means

__all__ = ["GroupTrainLoop"]

logger = logging.getLogger("xrlhf")

_ROWS_NAMED = 8
_MOST_SKIPPED_IN_A_ROW = 25
"""A loss scale begins at 2**16 and is halved each time: after so many it is too small for any use."""


@LOOPS.register_module()
class GroupTrainLoop(BaseLoop):
    """Runs optimizer steps, each over the groups the plan gives it; one mmengine "iter" is one step.

    All randomness of a step (dropout) comes from generators seeded by (seed, step, rank), so a run resumed at any
    step goes on as if it had never stopped.

    Args:
        runner: The runner.
        dataloader: Gives the micro-batches of every step.
        max_epochs: Length of the run in passes over the data; may be a fraction.
        max_steps: Length of the run in optimizer steps, in place of ``max_epochs``.
        val_interval: Steps between validations; None validates at the end only.

    Attributes:
        count_flops: What a micro-batch takes to compute, in FLOPs; a hook may set it, so that steps are counted.
        flops_per_second: FLOPs of the last step over all ranks, by its time; None while nothing counts them.
        stop_request: Whether this process was asked to stop; None if nobody can ask.
        is_stopping: Whether any process was asked to stop before the last step ended, which all know after it.

    Raises:
        ConfigError: Neither or both of ``max_epochs`` and ``max_steps``.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: StepLoader,
        *,
        max_epochs: float | None = None,
        max_steps: int | None = None,
        val_interval: int | None = None,
    ) -> None:
        super().__init__(runner, dataloader)
        if (max_epochs is None) == (max_steps is None):
            raise ConfigError("train_cfg needs either max_epochs or max_steps")
        if max_steps is not None:
            self._max_steps = max_steps
        else:
            assert max_epochs is not None
            self._max_steps = dataloader.num_steps(max_epochs)
        if self._max_steps < 1:
            raise ConfigError(f"the run has no step: max_epochs={max_epochs}, max_steps={max_steps}")
        if val_interval is not None and val_interval < 1:
            raise ConfigError(f"val_interval must be at least 1 step, got {val_interval}")
        self.val_interval = val_interval
        self._iter = 0
        self.count_flops: Callable[[PackedBatch], float] | None = None
        self.flops_per_second: float | None = None
        self._num_skipped = 0
        self._skipped_in_a_row = 0
        self.stop_request: StopRequest | None = None
        self.is_stopping = False

    @property
    def max_iters(self) -> int:
        """Optimizer steps of the whole run."""
        return self._max_steps

    @property
    def max_epochs(self) -> int:
        """Passes over the data, rounded up."""
        groups = self._max_steps * self.dataloader.groups_per_step
        return math.ceil(groups / self.dataloader.stream.epoch_size)

    @property
    def epoch(self) -> int:
        return self._iter * self.dataloader.groups_per_step // self.dataloader.stream.epoch_size

    @property
    def iter(self) -> int:
        """Optimizer steps done."""
        return self._iter

    def resume_at(self, step: int) -> None:
        """Go on after ``step`` steps; the plan needs no replay."""
        self._iter = step

    def run(self) -> torch.nn.Module:
        """Train to the end of the run, or to the end of the step in which a process was asked to stop."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        for batches in self.steps():
            runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=batches)
            outputs = self.run_step(batches)
            runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=batches, outputs=outputs)
            self._iter += 1
            if self.is_stopping and self._iter < self._max_steps:
                break
            if runner.val_loop is not None and self._validates_now():
                runner.val_loop.run()
                runner.model.train()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def steps(self) -> Iterator[StepBatches]:
        """The steps that are left, in order."""
        return self.dataloader.steps(self._iter, self._max_steps)

    def training_state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` steps has to hold beside the step's number: tensors and plain values."""
        return {}

    def load_training_state(self, checkpoint: Mapping[str, Any], origin: str) -> None:
        """Take up what :meth:`training_state` gave; the loop knows the step already."""

    def length_line(self) -> str:
        """How long the run is, for its log."""
        groups, in_data = self.dataloader.groups_per_step, len(self.dataloader.dataset)
        return f"{self.max_iters:,} steps of {groups} groups, {in_data:,} groups in the data"

    def _validates_now(self) -> bool:
        if self._iter == self._max_steps:
            return True
        return self.val_interval is not None and self._iter % self.val_interval == 0

    def run_step(self, batches: StepBatches) -> dict[str, float]:
        """One optimizer step; returns what the log shows of it."""
        began = time.perf_counter()
        strategy = self.runner.strategy
        device = strategy.device
        device.seed_all(derive_key(strategy.seed, "step", batches.step, strategy.rank) >> 1)
        sums: dict[str, torch.Tensor] = {}
        largest: dict[str, torch.Tensor] = {}
        losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        num_units = batches.num_units(getattr(strategy.module, "unit", "groups"))
        divergence = self._divergence(batches)
        for number, batch in enumerate(batches.batches):
            with naming_what_needs_memory(partial(self._explain_memory, batches, number)):
                batch = replace(batch.to(device.torch_device, non_blocking=True), divergence=divergence)
                with strategy.accumulate(last=number == len(batches.batches) - 1):
                    output = self.runner.model(batch)
                    strategy.backward(output.loss / num_units)
            device.mark_step()
            losses.append((batch.group_ids, output.group_losses))
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                sums[name] = sums[name] + value if name in sums else value
            for name, value in output.largest.items():
                largest[name] = torch.maximum(largest[name], value) if name in largest else value
        was_asked = float(self.stop_request is not None and self.stop_request.is_made)
        counts = torch.tensor([batches.num_tokens, self._flops_of(batches), was_asked], device=device.torch_device)
        sums["num_tokens"], sums["num_flops"], sums["num_asked_to_stop"] = counts.unbind()
        own = [value.float() for value in sums.values()]
        for value in largest.values():
            # A place for every rank: their sum holds the values of all.
            places = torch.zeros(strategy.world_size, device=device.torch_device)
            places[strategy.rank] = value
            own += places.unbind()
        totals = strategy.sum_over_ranks(torch.stack(own))
        grad_norm = strategy.clip_gradients()
        # The only wait for the device in a step: everything the log and the check need comes in one transfer.
        *values, norm = torch.cat([totals, grad_norm.reshape(1).to(totals)]).tolist()
        total = dict(zip(sums, values[: len(sums)], strict=True))
        of_ranks = iter(values[len(sums) :])
        maxima = {name: max(islice(of_ranks, strategy.world_size)) for name in largest}
        is_finite = math.isfinite(norm)
        if not math.isfinite(total["loss"]) or not (is_finite or strategy.survives_overflow):
            raise TrainingError(self._explain_non_finite(batches, losses, total["loss"] / num_units, norm))
        if is_finite:
            with naming_what_needs_memory(partial(self._explain_memory, batches, None)):
                strategy.step()
            self._skipped_in_a_row = 0
        else:
            self._skip(batches.step)
        self.is_stopping = total.pop("num_asked_to_stop") > 0
        device.mark_step()
        elapsed = time.perf_counter() - began
        num_tokens, num_flops = total.pop("num_tokens"), total.pop("num_flops")
        self.flops_per_second = None if self.count_flops is None else num_flops / elapsed
        return {
            "loss": total.pop("loss") / num_units,
            **metric_means(total, batches.num_groups),
            **({} if divergence is None else {"kl": divergence.item()}),
            **maxima,
            "num_samples": float(batches.num_groups),
            "num_tokens": num_tokens,
            "grad_norm": norm,
            "tokens_per_second": num_tokens / elapsed,
            "groups_per_second": batches.num_groups / elapsed,
            "memory": device.peak_memory_mib(),
            **({"num_skipped": float(self._num_skipped)} if strategy.survives_overflow else {}),
        }

    def _divergence(self, batches: StepBatches) -> torch.Tensor | None:
        """How far the policy is from its reference before this step, on all ranks; None where no loss asks."""
        if not batches.mismatched:
            return None
        strategy = self.runner.strategy
        return divergence_on(
            batches.mismatched,
            strategy.module,
            strategy.device,
            wrapped=self.runner.model,
            sum_over_ranks=strategy.sum_over_ranks,
        )

    def _skip(self, step: int) -> None:
        """Leave the weights alone in a step whose scaled gradients were too large for float16."""
        self.runner.strategy.skip_step()
        self._num_skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"step {step + 1}: the gradients of {self._skipped_in_a_row} steps in a row were not finite in "
                "float16, whatever the loss scale: set precision='bfloat16' or 'float32'"
            )
        logger.info(
            "step %d is skipped: gradients too large for float16, so the loss scale is lowered (%d skipped so far)",
            step + 1,
            self._num_skipped,
        )

    def _explain_memory(self, batches: StepBatches, number: int | None) -> str:
        strategy = self.runner.strategy
        who = f"step {batches.step + 1}: rank {strategy.rank} of {strategy.world_size} has no memory left on "
        device = f"{strategy.device.torch_device} ({strategy.device.peak_memory_mib():,.0f} MiB at most so far)"
        if number is None:
            return (
                f"{who}{device} to update the weights: train fewer of them (model.lora), or spread the optimizer over "
                "more devices"
            )
        batch = batches.batches[number]
        return (
            f"{who}{device} for micro-batch {number + 1} of {len(batches.batches)}, {batch.num_tokens:,} tokens in "
            f"{len(batch.group_ids)} group(s): lower train_dataloader.token_budget, now "
            f"{self.dataloader.token_budget:,}, or max_length, or turn on gradient checkpointing"
        )

    def _flops_of(self, batches: StepBatches) -> float:
        """FLOPs of this process's share of a step; filler does not count."""
        if self.count_flops is None:
            return 0.0
        return sum(self.count_flops(batch) for batch in batches.batches if bool(batch.group_weights.any()))

    def _explain_non_finite(
        self,
        batches: StepBatches,
        losses: list[tuple[torch.Tensor, torch.Tensor]],
        loss: float,
        grad_norm: float,
    ) -> str:
        mine = [
            (int(group), math.isfinite(value))
            for groups, values in losses
            for group, value in zip(groups.tolist(), values.tolist(), strict=True)
        ]
        # Every process comes here, since the sums they judge by are the same: all name the same rows.
        step = [item for of_rank in self.runner.strategy.gather_objects(mine) for item in of_rank]
        named = sorted({group for group, is_finite in step if not is_finite})
        what = "rows with a non-finite loss"
        if not named:
            named, what = sorted({group for group, _ in step}), "rows of the step"
        where = ", ".join(self.dataloader.dataset.where(group) for group in named[:_ROWS_NAMED])
        more = f" and {len(named) - _ROWS_NAMED} more" if len(named) > _ROWS_NAMED else ""
        return (
            f"step {batches.step + 1}: loss {loss:g}, gradient norm {grad_norm:g}; stopped before the weights were "
            f"touched; {what}: {where}{more}. Lower the learning rate, or look at these rows"
        )
