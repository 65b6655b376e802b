"""A device that is none: tensors of torch's PrivateUse1 backend, in Python, whose operations run on the CPU.

It behaves as an accelerator does where it matters for forgotten transfers: tensors live on ``fakedev:0``, what is made
without saying where lives on the CPU, and an operation on tensors of both raises. One such device fits in a process,
and the functions of torch it is made with are private, so it is used in a process of its own (``fake_device_run.py``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from xrlhf.devices.base import Device, process_peak_memory_mib

NAME = "fakedev"
aten = torch.ops.aten
_MOVES = {aten.copy_.default, aten._to_copy.default}


class FakeDeviceTensor(Tensor):
    """A tensor on ``fakedev:0``; ``held`` is the one on the CPU that holds its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> FakeDeviceTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """As other devices do it; torch refuses it for subclasses of its tensors."""
        return self.cpu().tolist()

    def __repr__(self, **kwargs: Any) -> str:
        return f"FakeDeviceTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        strangers = [item for item in given if not isinstance(item, cls) and item.dim() > 0]
        if strangers and func not in _MOVES:
            raise RuntimeError(f"{func} needs all tensors on one device, found {NAME}:0 and {strangers[0].device}")
        leaves = func is aten._to_copy.default and torch.device(kwargs.get("device") or NAME).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        before = {id(_held(item)): item for item in given}
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))

        def outside(value: Any) -> Any:
            if not isinstance(value, Tensor) or leaves:
                return value
            # What changes a tensor in place returns the tensor it was given.
            return before[id(value)] if id(value) in before else cls(value)

        return tree_map(outside, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, FakeDeviceTensor) else value


def _module() -> ModuleType:
    module = ModuleType(f"torch.{NAME}")
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda index: None,
        "synchronize": lambda *args: None,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def _empty(size: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    return FakeDeviceTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    return FakeDeviceTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


def set_up() -> torch.library.Library:
    """Make the device known to torch; it is there for as long as what is returned."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_module())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    # ``torch.tensor(..., device=...)`` comes here without asking the tensor's class.
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    return library


class FakeDevice(Device):
    """The fake device as the package uses one; the generators of its numbers are the CPU's."""

    name = type = NAME
    ds_accelerator = "cpu"
    fused_optimizers = False

    def __init__(self, *, static_shapes: bool = False) -> None:
        super().__init__()
        self.static_shapes = static_shapes
        self.index = 0

    @classmethod
    def obstacle(cls) -> str | None:
        return None

    def peak_memory_mib(self) -> float:
        return process_peak_memory_mib()
