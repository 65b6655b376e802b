"""Directories that hold an adapter, for a reward model with its score head, and the models they become on a base."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from xrlhf.errors import ModelError, error_line
from xrlhf.models.embeddings import embedding_name, embedding_weight, grow_embeddings
from xrlhf.models.lora import base_is_untouched, keeps_base
from xrlhf.models.quantised import dequantise

__all__ = [
    "adapter_of",
    "adapter_weights",
    "base_of",
    "find_adapter",
    "merge_adapter",
    "merge_adapter_of",
    "tokenizer_location",
]

logger = logging.getLogger("xrlhf")

_PREFIX = "base_model.model."
_SIZES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def find_adapter(location: str, revision: str | None = None) -> LoraConfig | None:
    """The config of the adapter at ``location``, None where there is none.

    Args:
        location: A directory or a hub name.
        revision: Commit, tag or branch on the hub.

    Raises:
        ModelError: An adapter of another kind than LoRA, or a config that cannot be read.
    """
    if Path(location).is_dir():
        folder = Path(location)
        found = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    else:
        found = _is_on_hub(location, revision)
    if not found:
        return None
    try:
        config = PeftConfig.from_pretrained(location, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{location!r} holds an adapter_config.json that cannot be read: {error_line(error)}"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"{location!r} holds a {config.peft_type} adapter: only LoRA adapters and their kin are read")
    return config


def base_of(config: LoraConfig, location: str) -> str:
    """The base that an adapter was trained on, by its config: a directory or a hub name.

    Args:
        config: As :func:`find_adapter` gives it.
        location: Where it was found, for messages.

    Raises:
        ModelError: It names none.
    """
    if not config.base_model_name_or_path:
        raise ModelError(
            f"the adapter_config.json of {location!r} names no base model: write it there as base_model_name_or_path, "
            "or merge with 'xrlhf convert merge BASE ADAPTER OUT'"
        )
    return str(config.base_model_name_or_path)


def _is_on_hub(name: str, revision: str | None) -> bool:
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except Exception:
        # Loading the model will say what is wrong, in more words.
        return False


def tokenizer_location(path: str, base: str | None = None) -> str:
    """Where the tokenizer of a model lies: beside the weights, or with the base of an adapter that has none.

    Args:
        path: A directory or a hub name, of a model or of an adapter.
        base: The adapter's base, where it is not the one that its config names.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() or any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return path
    config = find_adapter(str(folder))
    return path if config is None else base or base_of(config, path)


def merge_adapter(
    base: PreTrainedModel, head_name: str | None, location: str, revision: str | None = None
) -> PreTrainedModel:
    """``base`` with the adapter at ``location`` in its weights and the adapter's score head in place of its own.

    Args:
        base: A ``...ForSequenceClassification`` model with one label, or a language model; used up.
        head_name: Name of the score head; None for a language model, which has none.
        location: A directory or a hub name.
        revision: Commit, tag or branch of the adapter on the hub.

    Raises:
        ModelError: The adapter has no head (or has one, for a language model), belongs to another base, or cannot be
            merged.
    """
    config = find_adapter(location, revision)
    if config is None:
        raise ModelError(f"{location!r} holds no adapter: there is no adapter_config.json")
    if not keeps_base(config):
        raise ModelError(
            f"the adapter {location!r} began with init_lora_weights={config.init_lora_weights!r}, which takes a part "
            "out of its base: convert it to a plain LoRA first (peft: save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )
    weights = adapter_weights(location, revision)
    if head_name is None:
        if config.task_type == TaskType.SEQ_CLS:
            raise ModelError(f"the adapter {location!r} is that of a reward model (task_type SEQ_CLS)")
    elif f"{_PREFIX}{head_name}.weight" not in weights:
        raise ModelError(
            f"the adapter {location!r} holds no {head_name} head: it is the adapter of a language model, or was saved "
            f"without its head (modules_to_save=[{head_name!r}] keeps it)"
        )
    origin = base.config._name_or_path
    another = f"the adapter {location!r} is for another base than {origin!r} ({type(base).__name__})"
    sizes = {name: getattr(base.config, name, None) for name in _SIZES}
    _grow(base, config, weights, another)
    plain = copy.deepcopy(config)
    plain.task_type = TaskType.CAUSAL_LM if head_name is None else TaskType.SEQ_CLS
    if head_name is not None:
        plain.modules_to_save = [*(config.modules_to_save or ()), head_name]
    # peft warns of another name; what is to be said of it is said below.
    plain.base_model_name_or_path = base.name_or_path
    # What the adapters begin with is overwritten.
    plain.init_lora_weights = True
    try:
        wrapped = get_peft_model(base, plain)
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError, NotImplementedError) as error:
        raise ModelError(f"{another}: {error_line(error)}") from error
    _check_same(wrapped, weights, another)
    if named := config.base_model_name_or_path:
        _check_sizes(named, sizes, another)
        if Path(origin).name != Path(named).name:
            logger.warning("the adapter %s was trained on %s and is put on %s", location, named, origin)
    set_peft_model_state_dict(wrapped, weights)
    merged = merge_adapter_of(wrapped)
    merged.config._name_or_path = merged.name_or_path = location
    return merged


def adapter_weights(location: str, revision: str | None = None) -> dict[str, Tensor]:
    """The weights of an adapter by the names of the layers they belong to, as peft's files have them.

    Args:
        location: A directory or a hub name.
        revision: Commit, tag or branch on the hub.

    Raises:
        ModelError: They cannot be read.
    """
    try:
        options: dict[str, Any] = {} if revision is None else {"revision": revision}
        return load_peft_weights(location, device="cpu", **options)
    except Exception as error:
        raise ModelError(f"the weights of the adapter {location!r} cannot be read: {error_line(error)}") from error


def merge_adapter_of(model: PeftModel) -> PreTrainedModel:
    """The base of ``model`` with the adapters in its weights; ``model`` is used up.

    Where the base is quantised, it is dequantised first: rounding merged weights to 4 or 8 bits again would lose a
    part of what was trained. The result scores as the quantised base did under the adapters.

    Raises:
        ModelError: peft cannot merge them.
    """
    base = model.get_base_model()
    try:
        if getattr(base, "is_quantized", False):
            config = copy.deepcopy(model.peft_config["default"])
            trained = get_peft_model_state_dict(model, save_embedding_layers=False)
            weights = {name: value.detach().clone() for name, value in trained.items()}
            model = get_peft_model(dequantise(model.unload()), config)
            set_peft_model_state_dict(model, weights)
        return model.merge_and_unload()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"the adapters cannot be merged into the model: {error_line(error)}") from error


def adapter_of(model: PeftModel, token_ids: Sequence[int] = ()) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The config and the weights of a model's adapter with its head, as peft's own files hold them.

    Args:
        model: A reward backbone under adapters.
        token_ids: Tokens that the project added: their rows come along, trained or not, since the base has none.

    Raises:
        ModelError: There is no base to name, or the adapters are of no use on it.
    """
    config = cast(LoraConfig, copy.deepcopy(model.peft_config["default"]))
    base = cast(PreTrainedModel, model.get_base_model())
    origin = base.config._name_or_path
    if not origin:
        raise ModelError(
            "the adapter's base was made from a config and exists nowhere else: leave --adapter out, to export both"
        )
    if not base_is_untouched(model):
        raise ModelError(
            f"init_lora_weights={config.init_lora_weights!r} took a part out of the base, so the adapter is of no use "
            "on it: leave --adapter out, to export both"
        )
    if find_adapter(origin) is not None:
        raise ModelError(
            f"the base {origin!r} is an adapter itself, which other tools cannot put this one on: merge it first with "
            "'xrlhf convert merge BASE ADAPTER OUT' and train on OUT, or leave --adapter out, to export all"
        )
    name = embedding_name(base)
    in_lora = isinstance(base.get_input_embeddings(), LoraLayer)
    weights = get_peft_model_state_dict(model, save_embedding_layers=bool(token_ids) and in_lora)
    if token_ids and not in_lora and f"{_PREFIX}{name}.weight" not in weights:
        asked = config.trainable_token_indices
        rows = sorted({*_token_indices(asked), *token_ids})
        config.trainable_token_indices = {name.rpartition(".")[2]: rows} if isinstance(asked, Mapping) else rows
        weights[f"{_PREFIX}{name}.token_adapter.trainable_tokens_delta"] = embedding_weight(base)[rows]
    config.base_model_name_or_path = str(Path(origin).resolve()) if Path(origin).is_dir() else origin
    config.inference_mode = True
    children = dict(base.named_modules())
    config.modules_to_save = [
        module
        for module in dict.fromkeys(config.modules_to_save or ())
        if any(child == module or child.endswith(f".{module}") for child in children)
    ]
    return config, {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}


def _grow(base: PreTrainedModel, config: LoraConfig, weights: Mapping[str, Tensor], another: str) -> None:
    """Give ``base`` the rows for new tokens that the adapter brings, and only those that it brings."""
    rows = len(embedding_weight(base))
    name = _PREFIX + embedding_name(base)
    whole = next((weights[key] for key in (f"{name}.weight", f"{name}.base_layer.weight") if key in weights), None)
    if whole is not None:
        needed = len(whole)
        brought = set(range(needed))
    else:
        brought = set(_token_indices(config.trainable_token_indices))
        needed = max(brought, default=-1) + 1
    if needed <= rows:
        return
    if missing := sorted(set(range(rows, needed)) - brought):
        raise ModelError(
            f"{another}: it trains the row of token {needed - 1}, the base embeds {rows} tokens, and the adapter "
            f"brings no row for token {missing[0]}"
        )
    grow_embeddings(base, needed)


def _token_indices(given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> list[int]:
    if isinstance(given, Mapping):
        return [index for indices in given.values() for index in indices]
    return list(given or ())


def _check_sizes(named: str, sizes: Mapping[str, Any], another: str) -> None:
    """Refuse a base of other sizes than the one the adapter names, where that one is at hand."""
    if not (Path(named) / "config.json").is_file():
        return
    try:
        own = AutoConfig.from_pretrained(named)
    except (OSError, ValueError, KeyError):
        return
    for name, here in sizes.items():
        there = getattr(own, name, None)
        if there != here:
            raise ModelError(f"{another}: its own, {named!r}, has {name}={there!r}, and this one {here!r}")


def _check_same(wrapped: PeftModel, weights: Mapping[str, Tensor], another: str) -> None:
    """Refuse an adapter whose tensors are not exactly those that this base takes."""
    wanted: dict[str, Any] = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    whole_base = wrapped.state_dict()
    for key in sorted({*wanted, *weights}):
        place = key.removeprefix(_PREFIX)
        here = wanted.get(key, whole_base.get(key))
        if here is None:
            raise ModelError(f"{another}: it has {place}, which has no place there")
        if key not in weights:
            raise ModelError(f"{another}: it lacks {place}")
        if here.shape != weights[key].shape:
            raise ModelError(
                f"{another}: its {place} is of shape {tuple(weights[key].shape)}, and {tuple(here.shape)} fits there"
            )
