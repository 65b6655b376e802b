"""A model directory again, in files of another size."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xrlhf.errors import ModelError, UserError, error_line
from xrlhf.export.directory import check_new_directory, new_directory

__all__ = ["split_model"]

_SIZE = re.compile(r"\d+(\.\d+)?(TB|GB|MB|KB)", re.IGNORECASE)
_INDEX = "model.safetensors.index.json"


def split_model(model: Path, out: Path, *, max_shard_size: str) -> None:
    """Copy a Hugging Face directory, its weights in files of at most ``max_shard_size``.

    Tensors keep their names, types and values; a tensor that is larger by itself gets a file of its own. All other
    files are copied as they are.

    Args:
        model: A directory with safetensors weights.
        out: A directory that does not exist yet, or is empty.
        max_shard_size: Such as ``"2GB"``.

    Raises:
        ModelError: ``model`` holds no readable safetensors weights.
        UserError: ``out`` is not empty or cannot be written, or the size is none.
    """
    check_new_directory(out)
    if not _SIZE.fullmatch(max_shard_size):
        raise UserError(f"--max-shard-size must be a number with KB, MB, GB or TB, such as 2GB, got {max_shard_size!r}")
    if not model.is_dir():
        raise ModelError(f"no model at {str(model)!r}: there is no such directory")
    weights = _read(model)
    split = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    with new_directory(out) as aside:
        for file in sorted(model.iterdir()):
            if file.is_file() and file.suffix != ".safetensors" and file.name != _INDEX:
                shutil.copyfile(file, aside / file.name)
        try:
            for name, tensors in split.filename_to_tensors.items():
                save_file({key: weights[key] for key in tensors}, aside / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"{out} could not be written: {error_line(error)}") from error
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (aside / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(model: Path) -> dict[str, Tensor]:
    """All tensors, by name."""
    try:
        if (model / _INDEX).is_file():
            names = sorted(set(json.loads((model / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        weights: dict[str, Tensor] = {}
        for name in names:
            weights |= load_file(model / name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{str(model)!r} holds no readable safetensors weights: {error_line(error)}") from error
    return weights
