"""CPUs with Intel's extension for PyTorch, in an environment with the torch that the extension was built for."""

from __future__ import annotations

import re
from importlib import metadata

import torch
from torch import nn
from torch.optim import Optimizer

from xrlhf.devices.cpu import CpuDevice
from xrlhf.errors import DeviceError, error_line

__all__ = ["IpexDevice", "ipex_obstacle", "ipex_version"]

_PACKAGE = "intel-extension-for-pytorch"


def ipex_version() -> str | None:
    """The installed version of the extension, without importing it; None where it is not installed."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def ipex_obstacle() -> str | None:
    """Why the extension cannot be imported; None where it can.

    Told by versions alone: beside another torch its import fails in ways of its own.
    """
    version = ipex_version()
    if version is None:
        return f"{_PACKAGE} is not installed: the extra 'ipex' brings it, with the torch it needs"
    needed, found = _minor(version), _minor(torch.__version__)
    if needed != found:
        return f"{_PACKAGE} {version} works with torch {needed} alone, and this is torch {torch.__version__}"
    return None


class _Float32Linear(nn.Linear):
    """A linear layer that the extension leaves as it is: it changes those whose class is ``nn.Linear`` itself."""


class IpexDevice(CpuDevice):
    """A CPU on which Intel's extension holds the weights of a training model; taken only where it is named."""

    name = "ipex"
    found_unasked = False
    autocast_types = (torch.bfloat16,)
    rewrites_model = True

    @classmethod
    def obstacle(cls) -> str | None:
        return ipex_obstacle()

    def optimize(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Let the extension hold linear layers and embeddings in the type that training computes in.

        Under ``precision="bfloat16"`` the model then has bfloat16 weights, the optimizer keeps float32 ones, and
        ``model.state_dict()`` gives the latter. Layers that ``model.float32_modules`` names stay as they are.

        Raises:
            DeviceError: The extension fails.
        """
        import intel_extension_for_pytorch as ipex

        for kept in getattr(model, "float32_modules", ()):
            for module in kept.modules():
                if type(module) is nn.Linear:
                    module.__class__ = _Float32Linear
        try:
            # Packed weights would change names and shapes, by which checkpoints and FLOP counts go.
            ipex.optimize(
                model.train(),
                optimizer=optimizer,
                dtype=getattr(model, "precision", torch.float32),
                inplace=True,
                weights_prepack=False,
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise DeviceError(f"{_PACKAGE} cannot optimise this model: {error_line(error)}") from error

    def describe(self) -> str:
        return f"{super().describe()[:-1]}, {_PACKAGE} {ipex_version()})"


def _minor(version: str) -> str:
    found = re.match(r"\d+\.\d+", version)
    return version if found is None else found[0]
