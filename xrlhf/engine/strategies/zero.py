"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) split over the processes.

Rajbhandari et al., arXiv 1910.02054; the engine is deepspeedai/DeepSpeed. Checkpoints are the project's own: whole
tensors by name, which any other strategy reads, and never DeepSpeed's pickles.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xrlhf.engine.checkpoint import check_tensors
from xrlhf.engine.shares import Share, part_of, shape_of
from xrlhf.engine.strategies.distributed import DistributedStrategy
from xrlhf.engine.strategies.whole import with_whole_weights
from xrlhf.errors import ConfigError
from xrlhf.registry import STRATEGIES

__all__ = ["ZeROStrategy"]


@dataclass(frozen=True)
class _Piece:
    """What this process owns of one parameter: ``flat[flat_start:][:numel]`` holds its elements from ``start`` on."""

    parameter: nn.Parameter
    start: int
    numel: int
    flat: Tensor
    flat_start: int


@STRATEGIES.register_module()
class ZeROStrategy(DistributedStrategy):
    """Trains with DeepSpeed's ZeRO optimizers.

    Args:
        stage: 1 splits the optimizer's state, 2 the gradients too, 3 the weights too.
        cpu_offload: Keep the optimizer's state, and at stage 3 the weights, in the memory of the host.
        config: Further keys of DeepSpeed's own configuration, which have the last word.
        **kwargs: As :class:`SingleStrategy`.

    Raises:
        ConfigError: An unknown stage, or DeepSpeed is not installed.
    """

    keeps_model_whole = False

    def __init__(
        self, *, stage: int, cpu_offload: bool = False, config: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if stage not in (1, 2, 3):
            raise ConfigError(f"ZeROStrategy: stage is {stage!r}; accepted are 1, 2 and 3")
        self.stage = stage
        self.cpu_offload = cpu_offload
        self.config = dict(config or {})
        super().__init__(**kwargs)

    @property
    def module(self) -> nn.Module:
        return getattr(self.model, "module", self.model)

    def wrap(self, model: nn.Module) -> nn.Module:
        deepspeed = _import_deepspeed()
        optimizer = self.optim_wrapper.optimizer
        # DeepSpeed puts flat tensors of its own in the place of the parameters.
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self._deepspeed_config(), dist_init_required=False
        )
        return engine

    def _deepspeed_config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage}
        if self.cpu_offload:
            zero["offload_optimizer"] = {"device": "cpu"}
            if self.stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        config = {
            # Batches are the planner's business; these numbers must only agree with each other.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.optim_wrapper.max_grad_norm or 0.0,
            "zero_optimization": zero,
            # The recipe's optimizer is kept, also where its state lies in the memory of the host.
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        further = dict(self.config)
        zero.update(further.pop("zero_optimization", {}))
        return {**config, **further}

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        self.model.set_gradient_accumulation_boundary(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        # As elsewhere: gradients are averaged over the processes, and a step's loss is a sum over them.
        self.model.backward(loss * self.world_size)  # type: ignore[operator]

    def clip_gradients(self) -> Tensor:
        """The norm of the complete gradients; DeepSpeed clips while it steps."""
        optimizer = self._zero_optimizer
        if self.stage == 3:
            norm = torch.linalg.vector_norm(torch.stack([torch.as_tensor(n) for n in optimizer._get_norm_groups()]))
        else:
            norm = torch.as_tensor(optimizer.scaled_global_norm())
        # DeepSpeed says -1 for a norm that is not finite.
        return torch.where(norm < 0, torch.nan, norm)

    def step(self) -> None:
        self.model.step()  # type: ignore[operator]

    @property
    def _zero_optimizer(self) -> Any:
        return self.model.optimizer

    @property
    def _parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order in which the optimizer got it."""
        return [parameter for group in self._groups for parameter in group]

    def _pieces(self) -> Iterator[_Piece]:
        """Everything this process owns, in the order of its flat tensors."""
        optimizer = self._zero_optimizer
        if self.stage == 3:
            for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
                flat_start = 0
                for parameter in group:
                    size = parameter.partition_numel()
                    start = self.rank * size
                    yield _Piece(parameter, start, max(0, min(size, parameter.ds_numel - start)), flat, flat_start)
                    flat_start += size
            return
        for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            for parameter in group:
                if (own := parameter._hp_mapping) is not None:
                    inside, outside = own.lp_fragment_address, own.hp_fragment_address
                    yield _Piece(parameter, inside.start, inside.numel, flat, outside.start)

    def _share(self, value: Any) -> Share:
        if not hasattr(value, "ds_tensor"):
            return super()._share(value)
        size, total = value.partition_numel(), value.ds_numel
        start = min(total, self.rank * size)
        return Share(tuple(value.ds_shape), ((start, value.ds_tensor.detach()[: min(size, total - start)]),))

    def full_weights(self, names: set[str], *, copied: bool = False) -> dict[str, Tensor]:
        if self.stage < 3:
            return super().full_weights(names, copied=copied) if self.rank == 0 else {}
        weights = {}
        # Values of the wrong size stand for parameters that are split; buffers are whole.
        for name, value in self.module.state_dict(keep_vars=True).items():
            if name not in names:
                continue
            with self._gathered(value, writing=False):
                if self.rank == 0:
                    weights[name] = value.detach().cpu().clone()
        return weights

    def whole_weights(self, part: nn.Module) -> contextlib.AbstractContextManager[None]:
        return super().whole_weights(part) if self.stage < 3 else with_whole_weights(part, self._whole_on_device)

    def _whole_on_device(self, weight: nn.Parameter) -> Tensor:
        if not hasattr(weight, "ds_id"):
            return weight
        with self._gathered(weight, writing=False):
            return weight.detach().to(self.device.torch_device, copy=True)

    def load_full_weights(self, weights: Mapping[str, Tensor], filename: str) -> None:
        if self.stage < 3:
            super().load_full_weights(weights, filename)
        else:
            state = self.module.state_dict(keep_vars=True)
            shapes = {name: torch.empty(_shape(value), device="meta") for name, value in state.items()}
            check_tensors(shapes, weights, self.module.checkpoint_names(), filename)  # type: ignore[operator]
            for name in weights:
                with self._gathered(state[name], writing=True), torch.no_grad():
                    if self.rank == 0 or not hasattr(state[name], "ds_id"):
                        state[name].copy_(weights[name])
        self._zero_optimizer.refresh_fp32_params()

    def _gathered(self, value: Tensor, *, writing: bool) -> contextlib.AbstractContextManager[None]:
        """The whole of a tensor on every process, for a while; what the first one writes is then split again."""
        if not hasattr(value, "ds_id"):
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([value], modifier_rank=0 if writing else None)

    def full_optimizer_state(self, *, copied: bool = False) -> dict[str, Any]:
        state = self._state_by_parameter(self._whole)
        return {"state": state if self.rank == 0 else {}, "param_groups": self._options_of_groups()}

    def optimizer_shares(self) -> dict[str, Any]:
        return {"state": self._state_by_parameter(self._own), "param_groups": self._options_of_groups()}

    def _state_by_parameter(self, read: Callable[[nn.Parameter, str, list[_Piece]], Any]) -> dict[int, dict[str, Any]]:
        """What ``read`` gives of each state of each parameter and of what this process owns of it; empty at first."""
        pieces: dict[int, list[_Piece]] = {}
        for piece in self._pieces():
            pieces.setdefault(id(piece.parameter), []).append(piece)
        names = list(next(iter(self.optim_wrapper.optimizer.state.values()), {}))
        if not names:
            return {}
        return {
            index: {name: read(parameter, name, pieces.get(id(parameter), [])) for name in names}
            for index, parameter in enumerate(self._parameters)
        }

    def _options_of_groups(self) -> list[dict[str, Any]]:
        groups, start = [], 0
        for options, members in zip(self.optim_wrapper.optimizer.param_groups, self._groups, strict=True):
            stop = start + len(members)
            groups.append({**copy.deepcopy(_without(options, "params")), "params": list(range(start, stop))})
            start = stop
        return groups

    def _own(self, parameter: nn.Parameter, name: str, pieces: list[_Piece]) -> Any:
        """One state of the optimizer for one parameter: this process's share of it, or what is one for all."""
        states = self.optim_wrapper.optimizer.state
        if not _goes_by_element(next(iter(states.items())), name):
            return next(iter(states.values()))[name]
        own = [(p.start, states[p.flat][name].narrow(0, p.flat_start, p.numel)) for p in pieces]
        return Share(tuple(_shape(parameter)), tuple(own))

    def _whole(self, parameter: nn.Parameter, name: str, pieces: list[_Piece]) -> Any:
        """One state of the optimizer for one parameter, put together from what the processes own of it."""
        states = self.optim_wrapper.optimizer.state
        if not _goes_by_element(next(iter(states.items())), name):
            value = next(iter(states.values()))[name]
            return value.cpu().clone() if isinstance(value, Tensor) else value
        whole = torch.zeros(_shape(parameter).numel(), device=self.device.torch_device)
        for piece in pieces:
            own = states[piece.flat][name].narrow(0, piece.flat_start, piece.numel)
            whole.narrow(0, piece.start, piece.numel).copy_(own)
        dist.all_reduce(whole)
        return whole.view(_shape(parameter)).cpu()

    def load_full_optimizer_state(self, state: dict[str, Any]) -> None:
        optimizer = self.optim_wrapper.optimizer
        saved = {id(parameter): state["state"].get(i, {}) for i, parameter in enumerate(self._parameters)}
        if len(state["param_groups"]) != len(self._groups) or len(state["state"]) not in (0, len(self._parameters)):
            raise ValueError(f"state of {len(state['state'])} parameters for {len(self._parameters)}")
        optimizer.state.clear()
        for piece in self._pieces():
            own = optimizer.state[piece.flat]
            values = saved[id(piece.parameter)]
            for name in values:
                if shape_of(values, name) != _shape(piece.parameter):
                    own[name] = values[name].clone() if isinstance(values[name], Tensor) else values[name]
                    continue
                flat = own.setdefault(name, torch.zeros_like(piece.flat))
                part = part_of(values, name, piece.start, piece.numel)
                flat.narrow(0, piece.flat_start, piece.numel).copy_(part)
        for options, given in zip(optimizer.param_groups, state["param_groups"], strict=True):
            options.update(_without(given, "params"))


def _shape(value: Tensor) -> torch.Size:
    """The shape of the whole, also where this process holds a part."""
    return getattr(value, "ds_shape", value.shape)


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _goes_by_element(state_of_flat: tuple[Tensor, dict[str, Any]], name: str) -> bool:
    """Whether a state of the optimizer has a value for every element of its flat tensor, not one for all."""
    flat, values = state_of_flat
    return isinstance(values[name], Tensor) and values[name].shape == flat.shape


def _import_deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"strategies zero1 to zero3 need DeepSpeed ({error}): pip install 'xrlhf[deepspeed]', or choose fsdp or ddp"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
