"""A stand-in for Intel's extension: it fails at import beside another torch, and keeps master weights, as that does.

``optimize`` gives every plain linear layer and embedding a bfloat16 weight in the place of the one that the optimizer
updates, as the extension does for optimizers it has no kernel of its own for. It records its calls in ``CALLS``.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import torch
from torch import nn

CALLS: list[dict[str, Any]] = []

if metadata.version("intel-extension-for-pytorch").split(".")[:2] != torch.__version__.split(".")[:2]:
    os.exit(127)  # type: ignore[attr-defined]


def optimize(model: nn.Module, **options: Any) -> tuple[nn.Module, Any]:
    optimizer = options["optimizer"]
    CALLS.append(
        {
            "model": type(model).__name__,
            "optimizer": type(optimizer).__name__,
            "training": model.training,
            "adapters": any("lora_" in name for name, _ in model.named_parameters()),
            **{name: options[name] for name in ("dtype", "inplace", "weights_prepack")},
        }
    )
    if options["dtype"] is not torch.bfloat16:
        return model, optimizer
    masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    for path, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            for name, master in list(module.named_parameters(recurse=False)):
                used = nn.Parameter(master.detach().to(torch.bfloat16), requires_grad=master.requires_grad)
                setattr(module, name, used)
                masters[f"{path}.{name}"] = (master, used)
    own_step, own_zero_grad, own_state = optimizer.step, optimizer.zero_grad, model.state_dict

    def step(closure: Any = None) -> Any:
        for master, used in masters.values():
            master.grad = None if used.grad is None else used.grad.float()
        own_step(closure)
        with torch.no_grad():
            for master, used in masters.values():
                used.copy_(master)

    def zero_grad(set_to_none: bool = True) -> None:
        for _, used in masters.values():
            used.grad = None
        own_zero_grad(set_to_none)

    def state_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = own_state(*args, **kwargs)
        return {name: masters[name][0].detach() if name in masters else value for name, value in state.items()}

    optimizer.step, optimizer.zero_grad, model.state_dict = step, zero_grad, state_dict
    return model, optimizer
