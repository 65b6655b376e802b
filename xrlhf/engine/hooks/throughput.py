"""The share of the device's own rate that training reaches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn

from xrlhf.errors import error_line
from xrlhf.models.group_model import GroupModel
from xrlhf.registry import HOOKS

__all__ = ["ThroughputHook"]

logger = logging.getLogger("xrlhf")

_CLEARLY_FASTER = 1.2


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Adds ``mfu`` to the log: what a step's products would take at the device's rate, by what the step took.

    The rate is measured before the first step, on all processes at once, since they may share a machine; their mean
    is used. See :mod:`xrlhf.models.flops` for what is counted. Above 1 the machine had other work while the rate was
    measured.
    """

    def __init__(self) -> None:
        self._rate: float | None = None

    def before_train(self, runner: Any) -> None:
        """Measure the rate, and let the loop count."""
        strategy = runner.strategy
        module = strategy.module
        if not isinstance(module, GroupModel):
            logger.info("no mfu: %s has no transformers model to count the products of", type(module).__name__)
            return
        model = module.hf_model
        try:
            count_flops = module.count_flops()
        except Exception as error:
            # A family that describes itself in another way can be trained all the same.
            logger.warning("no mfu: the products of %s cannot be counted: %s", type(model).__name__, error_line(error))
            return
        dtype = _product_type(module, model)
        strategy.barrier()
        rates = strategy.gather_objects(strategy.device.matrix_rate(dtype))
        self._rate = sum(rates)
        in_float32 = strategy.device.matrix_rate(torch.float32)
        runner.train_loop.count_flops = count_flops
        logger.info(
            "matrix products: %s in %s%s, the rate mfu is measured against",
            _readable(self._rate / len(rates)),
            str(dtype).removeprefix("torch."),
            f" on each of {len(rates)} processes" if len(rates) > 1 else "",
        )
        ratio = in_float32 * len(rates) / self._rate
        if ratio > _CLEARLY_FASTER:
            # A processor without instructions for the smaller type computes it in detours.
            logger.warning(
                "this device multiplies %.1f times as fast in float32 as in %s: float32 would train faster and more "
                "exactly",
                ratio,
                str(dtype).removeprefix("torch."),
            )

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Put the share of the last step beside the values that the loop gave out."""
        if self._rate is not None:
            runner.message_hub.update_scalar("train/mfu", runner.train_loop.flops_per_second / self._rate)


def _product_type(model: nn.Module, hf_model: nn.Module) -> torch.dtype:
    """What products are computed in: autocast's type where there is autocast, else that of the weights."""
    precision = getattr(model, "precision", torch.float32)
    return hf_model.dtype if precision is torch.float32 else precision  # type: ignore[return-value]


def _readable(rate: float) -> str:
    billions = rate / 1e9
    return f"{billions:,.0f} GFLOP/s" if billions >= 10 else f"{billions:.2f} GFLOP/s"
