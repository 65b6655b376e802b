"""Optimizers over what is trainable, and schedules given as shares of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from xrlhf.devices import CpuDevice, Device
from xrlhf.errors import ConfigError, ModelError

__all__ = ["StepOptimWrapper", "build_optim_wrapper", "build_param_schedulers"]

_SCALE = "loss_scaler"


class StepOptimWrapper(OptimWrapper):
    """mmengine's wrapper for loops that count optimizer steps: clipping and the finiteness check come before a step.

    Args:
        optimizer: The optimizer.
        max_grad_norm: Largest 2-norm of all gradients together; larger ones are scaled down. None never clips.
        device: Where the weights are; the CPU if None.
        scaler: The loss scale of training in float16; None without.
        parameters: Whose gradients are clipped; those that the optimizer updates if None. A device may keep others for
            the optimizer than the model computes with.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None = None,
        *,
        device: Device | None = None,
        scaler: torch.amp.GradScaler | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
    ) -> None:
        super().__init__(optimizer)
        self.max_grad_norm = max_grad_norm
        self.device = device or CpuDevice()
        self.scaler = scaler
        self.parameters = parameters

    def get_lr(self) -> dict[str, list[float]]:
        """Learning rate of each parameter group, under the one name that the log shows."""
        return {"lr": [group["lr"] for group in self.optimizer.param_groups]}

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to go backward from: small gradients of a float16 loss would be 0 without its scale."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def clip_gradients(self) -> torch.Tensor:
        """Take the loss scale out of the gradients, clip, and return the norm before clipping, a scalar tensor."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = self.parameters
        if parameters is None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return self.device.clip_gradients([p for p in parameters if p.grad is not None], limit)

    def step(self, **kwargs: Any) -> None:
        """Update the weights with clipped gradients that are known to be finite."""
        super().step(**kwargs)
        if self.scaler is not None:
            # Not through the scaler, which would wait for the device to learn what the caller knows already.
            self.scaler.update()

    def skip_step(self) -> None:
        """Lower the loss scale, since gradients were not finite, in the place of :meth:`step`."""
        if self.scaler is not None:
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and that of the loss scale."""
        state = super().state_dict()
        return state if self.scaler is None else {**state, _SCALE: self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave; a state without a loss scale leaves it at its beginning."""
        scale = state_dict.get(_SCALE)
        super().load_state_dict({name: value for name, value in state_dict.items() if name != _SCALE})
        if self.scaler is not None and scale is not None:
            self.scaler.load_state_dict(scale)


def build_optim_wrapper(model: nn.Module, config: Mapping[str, Any], device: Device | None = None) -> StepOptimWrapper:
    """The optimizer of a recipe over the trainable parameters of ``model``, which the device may rewrite in place.

    Args:
        model: The model, on its device.
        config: ``optimizer`` (a dict whose ``type`` names a torch optimizer; it runs as one fused kernel where torch
            has one, unless the dict says ``fused`` or ``foreach``), ``max_grad_norm``, ``decay_all``: by default
            biases and parameters with one dimension (norm weights) take no weight decay; and ``lr_by_part``, learning
            rates of parts of the model by name, such as ``dict(critic=1e-5)``, in place of the optimizer's own.
        device: The device; the CPU if None.

    Raises:
        ConfigError: An option the optimizer does not have.
        DeviceError: The device cannot train in the model's precision.
        ModelError: Nothing is trainable, or float16 weights are.
    """
    device = device or CpuDevice()
    unknown = set(config) - {"optimizer", "max_grad_norm", "decay_all", "lr_by_part", "type"}
    if unknown or "optimizer" not in config:
        raise ConfigError(
            f"optim_wrapper takes optimizer, max_grad_norm, decay_all and lr_by_part, got {', '.join(sorted(config))}"
        )
    groups = _parameter_groups(model, bool(config.get("decay_all", False)), config.get("lr_by_part") or {})
    precision = getattr(model, "precision", torch.float32)
    device.check_precision(precision)
    if any(parameter.dtype is torch.float16 for group in groups for parameter in group["params"]):
        raise ModelError(
            "weights held in float16 cannot be trained, since their updates would round to nothing: leave the "
            "backbone's dtype at float32, and set precision='float16' to compute in it"
        )
    max_grad_norm = config.get("max_grad_norm")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"optim_wrapper.max_grad_norm must be above 0, or None for no clipping, got {max_grad_norm}")
    options = {**config["optimizer"], "params": groups}
    try:
        optimizer = OPTIMIZERS.build(dict(options))
        own = device.fused_optimizer(type(optimizer), set(options) - {"type"})
        if own is not None:
            optimizer = OPTIMIZERS.build({**options, "type": own})
        elif device.fused_optimizers and _takes_one_kernel(optimizer):
            optimizer = OPTIMIZERS.build({**options, "fused": True})
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"optim_wrapper.optimizer: {error}") from error
    device.optimize(model, optimizer)
    return StepOptimWrapper(
        optimizer,
        max_grad_norm,
        device=device,
        scaler=device.grad_scaler() if precision is torch.float16 else None,
        parameters=[p for p in model.parameters() if p.requires_grad] if device.rewrites_model else None,
    )


def _parameter_groups(model: nn.Module, decay_all: bool, lr_by_part: Mapping[str, float]) -> list[dict[str, Any]]:
    """What is trained, by its learning rate and by whether it decays.

    Raises:
        ConfigError: A part without a trainable parameter, or a rate that is none.
        ModelError: Nothing is trainable.
    """
    for part, lr in lr_by_part.items():
        if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not lr > 0:
            raise ConfigError(f"optim_wrapper.lr_by_part.{part} must be a number above 0, got {lr!r}")
    found: dict[tuple[str | None, bool], list[nn.Parameter]] = {
        (part, decays): [] for part in (None, *lr_by_part) for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = next((part for part in lr_by_part if f"{name}.".startswith(f"{part}.")), None)
            found[owner, parameter.ndim > 1 or decay_all].append(parameter)
    if not any(found.values()):
        raise ModelError("no parameter of the model is trainable")
    for part in lr_by_part:
        if not found[part, True] and not found[part, False]:
            raise ConfigError(f"optim_wrapper.lr_by_part: the model has no trainable part called {part!r}")
    return [
        {
            "params": parameters,
            **({} if decays else {"weight_decay": 0.0}),
            **({} if part is None else {"lr": float(lr_by_part[part])}),
        }
        for (part, decays), parameters in found.items()
        if parameters
    ]


def _takes_one_kernel(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch has this optimizer as one kernel for these weights, and the recipe leaves the choice open."""
    open_choice = optimizer.defaults.get("fused", False) is None and optimizer.defaults.get("foreach") is None
    special = any(optimizer.defaults.get(name) for name in ("differentiable", "capturable"))
    devices = _get_fused_kernels_supported_devices()
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return (
        open_choice
        and not special
        and all(weight.is_floating_point() and weight.device.type in devices for weight in weights)
    )


def build_param_schedulers(
    configs: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None, optim_wrapper: StepOptimWrapper, max_steps: int
) -> list[_ParamScheduler]:
    """mmengine schedules that count optimizer steps.

    ``begin`` and ``end`` may be whole numbers of steps, or floats from 0.0 to 1.0: shares of the run.

    Raises:
        ConfigError: A share outside 0 to 1, an end before the beginning, or an option the schedule does not have.
    """
    if configs is None:
        return []
    schedulers = []
    for number, config in enumerate([configs] if isinstance(configs, Mapping) else configs):
        options = {"begin": 0, "end": max_steps, **config, "by_epoch": False}
        asked = f"begin={options['begin']}, end={options['end']}"
        for name in ("begin", "end"):
            if isinstance(options[name], float):
                if not 0.0 <= options[name] <= 1.0:
                    raise ConfigError(
                        f"param_scheduler[{number}].{name}={options[name]} must be a share from 0.0 to 1.0, "
                        "or a whole number of steps"
                    )
                options[name] = round(options[name] * max_steps)
        if options["begin"] > options["end"]:
            raise ConfigError(f"param_scheduler[{number}] ends before it begins: {asked} in a run of {max_steps} steps")
        if options["begin"] == options["end"]:
            # A share too small for one step (warm-up in a very short run) leaves nothing to schedule.
            continue
        try:
            schedulers.append(PARAM_SCHEDULERS.build({**options, "optimizer": optim_wrapper}))
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            raise ConfigError(f"param_scheduler[{number}]: {error}") from error
    return schedulers
