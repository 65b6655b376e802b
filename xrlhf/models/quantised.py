"""Bases whose linear layers are held in 4 or 8 bits, for adapters to be trained on (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from xrlhf.errors import DeviceError, MissingExtraError, ModelError, error_line

__all__ = ["dequantise", "is_quantised", "keep_layout", "quantisation_config", "quantised_modules"]

logger = logging.getLogger("xrlhf")

_FORMATS = ("nf4", "fp4")


def quantisation_config(options: Mapping[str, Any], keep: Sequence[str]) -> BitsAndBytesConfig:
    """What ``from_pretrained`` takes as ``quantization_config``.

    Args:
        options: Options of :class:`transformers.BitsAndBytesConfig`, ``load_in_4bit`` or ``load_in_8bit`` among them.
            In 4 bits the format is ``"nf4"`` unless ``bnb_4bit_quant_type`` says ``"fp4"``.
        keep: Names of modules that stay in full precision, beside those in ``llm_int8_skip_modules``.

    Raises:
        ModelError: An unknown option or format, or not exactly one of 4 and 8 bits.
        MissingExtraError: bitsandbytes is not installed.
        DeviceError: bitsandbytes cannot compute on any device of this machine.
    """
    chosen = dict(options)
    known = set(inspect.signature(BitsAndBytesConfig.__init__).parameters) - {"self", "kwargs"}
    if unknown := sorted(set(chosen) - known):
        raise ModelError(
            f"quantization has no option {unknown[0]!r}: it takes those of transformers' BitsAndBytesConfig, "
            f"{', '.join(sorted(known))}"
        )
    if bool(chosen.get("load_in_4bit")) == bool(chosen.get("load_in_8bit")):
        raise ModelError(f"quantization={dict(options)} must say one of load_in_4bit=True and load_in_8bit=True")
    if chosen.get("load_in_4bit") and chosen.setdefault("bnb_4bit_quant_type", "nf4") not in _FORMATS:
        raise ModelError(f"bnb_4bit_quant_type must be 'nf4' or 'fp4', got {chosen['bnb_4bit_quant_type']!r}")
    _check_bitsandbytes()
    chosen["llm_int8_skip_modules"] = [*(chosen.get("llm_int8_skip_modules") or []), *keep]
    try:
        return BitsAndBytesConfig(**chosen)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"quantization={dict(options)} is refused: {error_line(error)}") from error


def _check_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "a quantised base needs bitsandbytes, which is not installed: pip install 'xrlhf[quantised]', or leave "
            "quantization out"
        )
    import bitsandbytes

    here = {"cpu", *(kind for kind in ("cuda", "xpu", "hpu", "npu", "mps") if _has(kind))}
    there = set(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    if not here & there:
        raise DeviceError(
            f"this bitsandbytes ({bitsandbytes.__version__}) computes on {', '.join(sorted(there))}, and this machine "
            f"has {', '.join(sorted(here))}: leave quantization out"
        )


def _has(kind: str) -> bool:
    module = getattr(torch, kind, None)
    return module is not None and hasattr(module, "is_available") and bool(module.is_available())


def keep_layout(model: PreTrainedModel) -> None:
    """Have the weights of a quantised model stay as they were loaded, whatever mode it is run in.

    On CPUs with AVX512-BF16, bitsandbytes would pack 4-bit weights anew in the first pass without gradients, with
    scales rounded to bfloat16, and what is packed gives no gradients (bitsandbytes 0.50, nn/modules.py).
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantised(model: nn.Module) -> bool:
    """Whether linear layers of ``model`` are held in 4 or 8 bits."""
    return bool(getattr(model, "is_quantized", False))


def quantised_modules(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` whose weights are held in 4 or 8 bits; such a weight means nothing without its layer."""
    return [
        module
        for module in model.modules()
        if any(type(weight).__module__.startswith("bitsandbytes.") for weight in module.parameters(recurse=False))
    ]


def dequantise(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Replace the quantised layers of ``model``, in place, by plain ones with the very weights it computes with."""
    plain = model.dequantize(dtype=dtype)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        if getattr(plain, name, False):
            setattr(plain, name, False)
    return plain
