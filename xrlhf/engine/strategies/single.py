"""One process, one device; the base of every other strategy."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine
import torch
import transformers
from mmengine._strategy import BaseStrategy
from torch import Tensor, nn

from xrlhf.devices import Device
from xrlhf.engine.background import BackgroundWork
from xrlhf.engine.checkpoint import (
    abandon_shards,
    commit_shards,
    load_checkpoint,
    load_strictly,
    prepare_shards,
    refuse_damaged,
    save_checkpoint,
    save_shard,
)
from xrlhf.engine.durable import FileRecord
from xrlhf.engine.optim import StepOptimWrapper, build_optim_wrapper, build_param_schedulers
from xrlhf.engine.shares import Share, even_share
from xrlhf.errors import CheckpointError, ConfigError, TrainingError, UserError
from xrlhf.registry import STRATEGIES
from xrlhf.version import __version__

__all__ = ["SingleStrategy"]

logger = logging.getLogger("xrlhf")

_PROGRESS_OF_A_SCHEDULE = {"last_step", "base_values", "verbose", "_global_step", "_last_value"}


@dataclass(frozen=True)
class _Saving:
    """A checkpoint that is being written."""

    path: Path
    work: BackgroundWork[list[FileRecord]]
    seconds_stopped: float

    @property
    def is_sharded(self) -> bool:
        return self.path.suffix != ".pth"


@STRATEGIES.register_module()
class SingleStrategy(BaseStrategy):
    """Trains on one device.

    A strategy wraps the model from outside: it decides how gradients of several processes meet, and how state is
    saved and loaded. The loop calls :meth:`accumulate`, :meth:`backward`, :meth:`clip_gradients` and
    :meth:`step` (or :meth:`skip_step`), in this order.

    Args:
        device: The device of this process.
        **kwargs: As mmengine's ``BaseStrategy``.

    Attributes:
        keeps_model_whole: Whether every process holds the whole model as it is, so that a device may rewrite it.
    """

    keeps_model_whole: bool = True
    optim_wrapper: StepOptimWrapper
    _prepared: bool

    def __init__(self, *, device: Device, **kwargs: Any) -> None:
        self.device = device
        self._saving: _Saving | None = None
        super().__init__(**kwargs)

    @property
    def module(self) -> nn.Module:
        """The model itself, without what the strategy wraps around it."""
        return self.model

    def prepare(
        self,
        model: nn.Module | dict,
        *,
        optim_wrapper: Any = None,
        param_scheduler: Any = None,
        compile: Any = False,
        dispatch_kwargs: dict | None = None,
    ) -> Any:
        """Put the model on the device, wrap it, and build optimizer and schedules around it."""
        if self._prepared:
            return self._prepared_components()
        self.dispatch_kwargs.update(dispatch_kwargs or {})
        built = self.build_model(model)
        if not self.keeps_model_whole and hasattr(built, "single_forward"):
            # Processes fetch weights from each other, so all of them have to run the model equally often.
            built.single_forward = True
        placed = self.place(built)
        if optim_wrapper is not None:
            self.optim_wrapper = build_optim_wrapper(placed, optim_wrapper, self.device)
            if self.optim_wrapper.scaler is not None and not self.keeps_model_whole:
                raise ConfigError(
                    f"{type(self).__name__} does not train in float16, whose loss scale needs the gradients whole: "
                    "choose precision 'bfloat16', or strategy 'ddp'"
                )
            self.param_schedulers = build_param_schedulers(
                param_scheduler, self.optim_wrapper, self.dispatch_kwargs["max_iters"]
            )
        self.model = self.wrap(placed)
        self._prepared = True
        return self._prepared_components()

    def place(self, model: nn.Module) -> nn.Module:
        """The model, built on the CPU, on its device, as the optimizer is to see it."""
        return model.to(self.device.torch_device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What training calls in the place of the model; the optimizer, if there is one, exists."""
        return model

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surrounds one micro-batch; ``last`` says that the gradients are complete after it."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of the step's loss."""
        self.optim_wrapper.scale_loss(loss).backward()

    @property
    def survives_overflow(self) -> bool:
        """Whether gradients that are not finite only mean that the loss scale of float16 was too large."""
        return self.optim_wrapper.scaler is not None

    def clip_gradients(self) -> Tensor:
        """Clip the complete gradients; their norm before clipping, the same on every rank."""
        return self.optim_wrapper.clip_gradients()

    def step(self) -> None:
        """Update the weights and clear the gradients."""
        self.optim_wrapper.step()
        self.optim_wrapper.zero_grad()

    def skip_step(self) -> None:
        """Leave the weights as they are, clear the gradients, and lower the loss scale."""
        self.optim_wrapper.skip_step()
        self.optim_wrapper.zero_grad()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, on every process."""
        return values

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every process, in the order of ranks, on every process."""
        return [value]

    def barrier(self) -> None:
        """Wait for the other processes."""

    def full_weights(self, names: set[str], *, copied: bool = False) -> dict[str, Tensor]:
        """The tensors of the model's state called ``names``, whole and on the CPU; every process takes part.

        Processes other than the first may return nothing: they do not write. ``copied`` asks for tensors that further
        training does not change; otherwise they may be the model's own.
        """
        return {name: _on_host(value, copied) for name, value in self.module.state_dict().items() if name in names}

    def full_optimizer_state(self, *, copied: bool = False) -> dict[str, Any]:
        """The optimizer's state as one process would have it; every process takes part, as in ``full_weights``."""
        state = self.optim_wrapper.state_dict()
        if not copied:
            return state
        values = {
            index: {name: _on_host(value, True) if isinstance(value, Tensor) else value for name, value in of.items()}
            for index, of in state["state"].items()
        }
        return {**copy.deepcopy({name: part for name, part in state.items() if name != "state"}), "state": values}

    def whole_weights(self, part: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Surrounds what runs a part of the model by itself: its weights are whole on every process meanwhile.

        Processes meet where it is entered, which all of them have to do; inside and where it is left none waits for
        another, so that they may do different things there, and fail there.
        """
        return contextlib.nullcontext()

    def weight_shares(self, names: set[str]) -> dict[str, Share]:
        """This process's shares of the tensors of the model's state called ``names``, in place.

        Those of all processes together are the whole. Where every process holds everything, a share is what this one
        saves of it.
        """
        state = self.module.state_dict(keep_vars=True)
        return {name: self._share(value) for name, value in state.items() if name in names}

    def optimizer_shares(self) -> dict[str, Any]:
        """The optimizer's state with this process's shares of its tensors; other values are those of all processes."""
        state = self.optim_wrapper.state_dict()
        values = {
            index: {name: self._share(value) if _is_array(value) else value for name, value in of.items()}
            for index, of in state["state"].items()
        }
        return {**state, "state": values}

    def _share(self, value: Tensor) -> Share:
        """What this process saves of a tensor."""
        return even_share(value, self.rank, self.world_size)

    def load_full_weights(self, weights: Mapping[str, Tensor], filename: str) -> None:
        """Load what :meth:`full_weights` gave under any strategy."""
        load_strictly(self.module, weights, self.module.checkpoint_names(), filename)  # type: ignore[operator]

    def load_full_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`full_optimizer_state` gave under any strategy."""
        parameters = [p for group in self.optim_wrapper.param_groups for p in group["params"]]
        if state["state"] and len(state["state"]) > len(parameters):
            raise ValueError(f"state of {len(state['state'])} parameters for {len(parameters)}")
        own = {
            index: {name: self._own_state(parameters[index], values, name) for name in values}
            for index, values in state["state"].items()
        }
        self.optim_wrapper.load_state_dict({**state, "state": own})

    def _own_state(self, parameter: nn.Parameter, values: Mapping[str, Any], name: str) -> Any:
        """What this process holds of one saved state of a parameter, in memory of its own."""
        value = values[name]
        if not isinstance(value, Tensor):
            return value
        # One tensor after the other goes to the device. The optimizer itself knows where its counters belong.
        return value.to(parameter.device, copy=True) if value.dim() else value.clone()

    def on_first_rank(self, action: Callable[[], None]) -> None:
        """Do something that only one process may do; an error there is an error everywhere."""
        action()

    def raise_together(self, error: BaseException | None) -> None:
        """Raise ``error`` on all processes where any has one, its own where it has; every process takes part."""
        if error is not None:
            raise error

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
        overlap: bool = False,
    ) -> None:
        """Save the state of the model and, unless told otherwise, of optimizer and schedules.

        Args:
            filename: ``.../iter_N.pth`` gathers everything in one file, written by the first process; a name without
                ``.pth`` is that of a folder to which every process writes what it holds.
            save_optimizer: Whether the optimizer's state is saved.
            save_param_scheduler: Whether the schedules' state is saved.
            extra_ckpt: What else is saved; its ``meta`` is completed.
            callback: Called with the state before it is written, on the first process.
            overlap: Return when the state has been copied and write it beside training. It counts when
                :meth:`finish_saving` has said so.

        Raises:
            TrainingError: A weight is not finite: the last update overflowed, and the checkpoint would be of no use.
            CheckpointError: It cannot be written.
        """
        self.finish_saving()
        began = time.perf_counter()
        path = Path(filename)
        names = self.module.checkpoint_names()  # type: ignore[operator]
        shares = self.weight_shares(names)
        self._refuse_non_finite(shares, filename)
        common = self._common_state(extra_ckpt or {}, save_param_scheduler)
        if path.suffix == ".pth":
            del shares
            write = self._file_to_write(path, names, common, save_optimizer, callback, overlap)
        else:
            self.on_first_rank(lambda: prepare_shards(path))
            write = self._shard_to_write(path, shares, common, save_optimizer, callback)
        self._saving = _Saving(path, BackgroundWork(write, "xrlhf-save"), time.perf_counter() - began)
        del write
        if not overlap:
            self.finish_saving()

    def _common_state(self, extra: dict[str, Any], save_param_scheduler: bool) -> dict[str, Any]:
        """What is saved beside weights and optimizer."""
        state = dict(extra)
        if save_param_scheduler:
            state["param_schedulers"] = copy.deepcopy([scheduler.state_dict() for scheduler in self.param_schedulers])
        state["meta"] = {
            **state.get("meta", {}),
            "format": 1,
            "seed": self.seed,
            "world_size": self.world_size,
            "strategy": type(self).__name__,
            **self._kinds(),
            "versions": {
                "xrlhf": __version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
                "mmengine": mmengine.__version__,
            },
        }
        return state

    def _file_to_write(
        self,
        path: Path,
        names: set[str],
        common: dict[str, Any],
        save_optimizer: bool,
        callback: Callable | None,
        copied: bool,
    ) -> Callable[[], list[FileRecord]]:
        """Gather the whole state; what writes it, on the first process, and does nothing elsewhere."""
        state = {"state_dict": self.full_weights(names, copied=copied), **common}
        if save_optimizer:
            state["optimizer"] = self.full_optimizer_state(copied=copied)
        if callback is not None:
            self.on_first_rank(lambda: callback(state))
        if self.rank != 0:
            return list

        def write() -> list[FileRecord]:
            save_checkpoint(state, path)
            return []

        return write

    def _shard_to_write(
        self,
        path: Path,
        shares: Mapping[str, Share],
        common: dict[str, Any],
        save_optimizer: bool,
        callback: Callable | None,
    ) -> Callable[[], list[FileRecord]]:
        """Copy what this process holds; what writes it."""
        shard: dict[str, Any] = {"state_dict": {name: share.copied() for name, share in shares.items()}}
        if save_optimizer:
            optimizer = self.optimizer_shares()
            shard["optimizer"], plain = {}, {}
            for index, values in optimizer["state"].items():
                shard["optimizer"][index] = {
                    name: value.copied() for name, value in values.items() if isinstance(value, Share)
                }
                plain[index] = {
                    name: _on_host(value, True) if isinstance(value, Tensor) else value
                    for name, value in values.items()
                    if not isinstance(value, Share)
                }
            rest = {name: part for name, part in optimizer.items() if name != "state"}
            common = {**common, "optimizer": {**copy.deepcopy(rest), "state": plain}}
        if callback is not None:
            self.on_first_rank(lambda: callback(common))

        def write() -> list[FileRecord]:
            from_first = common if self.rank == 0 else None
            return save_shard(shard, path, rank=self.rank, world_size=self.world_size, common=from_first)

        return write

    def finish_saving(self, *, wait: bool = True) -> Path | None:
        """See a checkpoint that is being written to its end; every process takes part, between two steps.

        Args:
            wait: Wait for the end; otherwise return at once where a process is still writing.

        Returns:
            The checkpoint that has become whole; None where there is none to finish, or where it is not finished.

        Raises:
            CheckpointError: It could not be written.
        """
        saving = self._saving
        if saving is None:
            return None
        if not wait and self._is_anyone_writing(saving):
            return None
        began = time.perf_counter()
        saving.work.wait()
        self._saving = None
        try:
            self.raise_together(saving.work.error)
        except BaseException:
            if saving.is_sharded and self.rank == 0:
                abandon_shards(saving.path)
            raise
        if saving.is_sharded:
            records = [record for of_rank in self.gather_objects(saving.work.result) for record in of_rank]
            self.on_first_rank(lambda: commit_shards(saving.path, records))
        stopped = saving.seconds_stopped + time.perf_counter() - began
        logger.info("saved %s: written in %.1f s, training waited %.1f s", saving.path, saving.work.seconds, stopped)
        return saving.path

    def _is_anyone_writing(self, saving: _Saving) -> bool:
        still = torch.tensor(float(not saving.work.is_done), device=self.device.torch_device)
        return bool(self.sum_over_ranks(still))

    def leave_saving(self) -> None:
        """Wait for what this process is still writing, before it ends without the others because of an error.

        A checkpoint of one file becomes whole so; one of several processes' parts does not, unless there is but one.
        """
        saving = self._saving
        if saving is None:
            return
        if self.world_size == 1:
            with contextlib.suppress(UserError):
                self.finish_saving()
            return
        saving.work.wait()
        self._saving = None

    def _refuse_non_finite(self, shares: Mapping[str, Share], filename: str) -> None:
        values = [
            (name, piece) for name, share in shares.items() for _, piece in share.pieces if piece.is_floating_point()
        ]
        bad: set[str] = set()
        if values:
            # One answer for all of them: asking one by one would wait for the device each time.
            device = self.device.torch_device
            is_finite = torch.stack([piece.isfinite().all().to(device) for _, piece in values]).tolist()
            bad = {name for (name, _), finite in zip(values, is_finite, strict=True) if not finite}
        everywhere = sorted(set().union(*self.gather_objects(bad)))
        if everywhere:
            raise TrainingError(
                f"{filename} was not saved: {len(everywhere)} of {len({name for name, _ in values})} weights are not "
                f"finite after the last update, such as {everywhere[0]}. Lower the learning rate; earlier checkpoints "
                "are untouched"
            )

    def load_checkpoint(
        self,
        filename: str,
        *,
        map_location: Any = "cpu",
        strict: bool = True,
        revise_keys: list | None = None,
        callback: Callable | None = None,
        check: bool = True,
    ) -> dict:
        """Load the weights of a checkpoint, every one of them, and return the rest.

        ``check`` has the first process compare it with its manifest first, which reads it a second time.
        """
        if check:
            self.on_first_rank(lambda: refuse_damaged(Path(filename)))
        checkpoint = load_checkpoint(Path(filename), check=False)
        if callback is not None:
            callback(checkpoint)
        self.load_full_weights(checkpoint.pop("state_dict"), filename)
        return checkpoint

    def resume(
        self,
        filename: str,
        *,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
        callback: Callable | None = None,
        check: bool = True,
    ) -> dict:
        """Load weights, optimizer and schedules of a checkpoint, and return the rest.

        Raises:
            CheckpointError: It holds no such state, or that of another optimizer or other schedules.
        """
        checkpoint = self.load_checkpoint(filename, callback=callback, check=check)
        wanted = {"optimizer": resume_optimizer, "param_schedulers": resume_param_scheduler}
        for name in [name for name, asked in wanted.items() if asked]:
            before, now = checkpoint["meta"].get(name), self._kinds()[name]
            if name not in checkpoint:
                raise CheckpointError(f"{filename} holds no {name} state to go on from: it can serve --load-from only")
            if before != now:
                raise CheckpointError(
                    f"{filename} was trained with {name}={before} and the recipe says {now}: go on with the same, or "
                    "use --load-from to start a new run from these weights"
                )
        if resume_optimizer:
            try:
                self.load_full_optimizer_state(checkpoint.pop("optimizer"))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise CheckpointError(f"{filename} does not fit the recipe's optimizer: {error}") from error
        if resume_param_scheduler:
            for number, state in enumerate(checkpoint.pop("param_schedulers")):
                self._resume_schedule(number, state)
        return checkpoint

    def _resume_schedule(self, number: int, state: dict[str, Any]) -> None:
        scheduler = self.param_schedulers[number]
        changed = [
            f"{name} from {state[name]} to {now}"
            for name, now in scheduler.state_dict().items()
            if name not in _PROGRESS_OF_A_SCHEDULE and name in state and state[name] != now
        ]
        if changed:
            logger.warning(
                "the recipe changes %s (%s), but a resumed run goes on with the schedule of its checkpoint",
                type(scheduler).__name__,
                ", ".join(changed),
            )
        scheduler.load_state_dict(state)

    def _kinds(self) -> dict[str, Any]:
        """The classes whose state a checkpoint holds, in words."""
        return {
            "optimizer": type(self.optim_wrapper.optimizer).__name__,
            "param_schedulers": [type(scheduler).__name__ for scheduler in self.param_schedulers],
        }


def _on_host(value: Tensor, copied: bool) -> Tensor:
    """A tensor on the CPU; ``copied`` in memory of its own, of no larger size than it has."""
    return value.detach().to("cpu", copy=True) if copied else value.detach().cpu()


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
