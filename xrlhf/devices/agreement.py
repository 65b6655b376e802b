"""Other libraries choose a device by themselves; here they are told which one the run uses."""

from __future__ import annotations

import os
import sys
from typing import Any

from xrlhf.errors import DeviceError

__all__ = ["tell_libraries"]

_DEEPSPEED = "DS_ACCELERATOR"
_told: str | None = None


def tell_libraries(name: str, torch_type: str, ds_accelerator: str) -> None:
    """Make mmengine and DeepSpeed use the device that was chosen.

    Args:
        name: What the user calls it.
        torch_type: What torch and mmengine call it.
        ds_accelerator: What DeepSpeed calls it.

    Raises:
        DeviceError: The environment tells DeepSpeed another one.
    """
    global _told
    stated = os.environ.get(_DEEPSPEED)
    # What an earlier choice in this process has put there may be replaced; what the user has put there may not.
    if stated not in (None, _told, ds_accelerator):
        raise DeviceError(
            f"{_DEEPSPEED}={stated} tells DeepSpeed another device than {name!r}, which the run uses: unset it, or "
            f"set it to {ds_accelerator}"
        )
    os.environ[_DEEPSPEED] = _told = ds_accelerator
    loaded: Any = sys.modules.get("deepspeed.accelerator.real_accelerator")
    if loaded is not None:
        # mmengine imports DeepSpeed where that is installed; it chooses at once, and reads the variable if asked anew.
        loaded.ds_accelerator = None

    import mmengine.device.utils

    # It knows neither xpu nor hpu, and takes cuda where that is there, whatever the run uses.
    mmengine.device.utils.DEVICE = torch_type
