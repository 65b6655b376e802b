"""One process, one device; the base of every other strategy."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mmengine
import torch
import transformers
from mmengine._strategy import BaseStrategy
from torch import Tensor, nn

from xrlhf.devices import Device
from xrlhf.engine.checkpoint import load_checkpoint, load_strictly, save_checkpoint
from xrlhf.engine.optim import StepOptimWrapper, build_optim_wrapper, build_param_schedulers
from xrlhf.errors import CheckpointError, ConfigError, TrainingError
from xrlhf.registry import STRATEGIES
from xrlhf.version import __version__

__all__ = ["SingleStrategy"]

logger = logging.getLogger("xrlhf")

_PROGRESS_OF_A_SCHEDULE = {"last_step", "base_values", "verbose", "_global_step", "_last_value"}


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

    def full_weights(self, names: set[str]) -> dict[str, Tensor]:
        """The tensors of the model's state called ``names``, whole and on the CPU; every process takes part.

        Processes other than the first may return nothing: they do not write.
        """
        return {name: value.detach().cpu() for name, value in self.module.state_dict().items() if name in names}

    def full_optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state as one process would have it; every process takes part, as in ``full_weights``."""
        return self.optim_wrapper.state_dict()

    def load_full_weights(self, weights: Mapping[str, Tensor], filename: str) -> None:
        """Load what :meth:`full_weights` gave under any strategy."""
        load_strictly(self.module, weights, self.module.checkpoint_names(), filename)  # type: ignore[operator]

    def load_full_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`full_optimizer_state` gave under any strategy."""
        self.optim_wrapper.load_state_dict(state)

    def on_first_rank(self, action: Callable[[], None]) -> None:
        """Do something that only one process may do; an error there is an error everywhere."""
        action()

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
    ) -> None:
        """Save the state of the model and, unless told otherwise, of optimizer and schedules.

        Raises:
            TrainingError: A weight is not finite: the last update overflowed, and the checkpoint would be of no use.
            CheckpointError: It cannot be written.
        """
        weights = self.full_weights(self.module.checkpoint_names())  # type: ignore[operator]
        state: dict[str, Any] = {"state_dict": weights, **(extra_ckpt or {})}
        if save_optimizer:
            state["optimizer"] = self.full_optimizer_state()
        if save_param_scheduler:
            state["param_schedulers"] = [scheduler.state_dict() for scheduler in self.param_schedulers]
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

        def write() -> None:
            _refuse_non_finite(weights, filename)
            if callback is not None:
                callback(state)
            save_checkpoint(state, Path(filename))

        self.on_first_rank(write)

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

        ``check`` compares the file with its manifest first, which reads it a second time.
        """
        checkpoint = load_checkpoint(Path(filename), check=check)
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
            except (KeyError, TypeError, ValueError) as error:
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


def _refuse_non_finite(weights: dict[str, Tensor], filename: str) -> None:
    names = [name for name, value in weights.items() if value.is_floating_point()]
    if not names:
        return
    # One answer for all of them: asking one by one would wait for the device each time.
    is_finite = torch.stack([weights[name].isfinite().all() for name in names]).tolist()
    bad = [name for name, finite in zip(names, is_finite, strict=True) if not finite]
    if bad:
        raise TrainingError(
            f"{filename} was not saved: {len(bad)} of {len(names)} weights are not finite after the last update, such "
            f"as {bad[0]}. Lower the learning rate; earlier checkpoints are untouched"
        )
