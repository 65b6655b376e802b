"""Backbones: Hugging Face models with a score layer, from a directory or from a config."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from xrlhf.errors import ModelError, error_line
from xrlhf.models.adapters import base_of, find_adapter, merge_adapter
from xrlhf.models.embeddings import embedding_weight, grow_embeddings
from xrlhf.models.heads import head_of_config
from xrlhf.models.internlm2 import register_internlm2
from xrlhf.models.location import loading_error, pretrained_location
from xrlhf.models.quantised import keep_layout, quantisation_config
from xrlhf.models.shapes import are_shapes_alone
from xrlhf.registry import MODELS

__all__ = [
    "HEAD_NAMES",
    "Loaded",
    "PretrainedKind",
    "backbone_from_config",
    "backbone_from_pretrained",
    "check_has_config",
    "check_vocabulary",
    "check_weights",
    "config_of_type",
    "decoder_layers",
    "disable_dropout",
    "embedding_weight",
    "fit_embeddings",
    "load_pretrained",
    "model_location",
    "score_head",
    "torch_dtype",
]

logger = logging.getLogger("xrlhf")

HEAD_NAMES = ("score", "classifier", "v_head")
"""What architectures call the layer that gives a score."""

_NEVER_READ = ("*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot", "*.tflite", "*.pth")
_DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """``"float32"``, ``"bfloat16"`` or ``"float16"`` as a dtype.

    Raises:
        ModelError: Another name.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {name!r}")
    return getattr(torch, name)


@MODELS.register_module()
def backbone_from_pretrained(
    path: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    hub: str | None = None,
    trust_remote_code: bool = False,
    head_init: str = "zero",
    require_head: bool = False,
    num_outputs: int | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal or sequence-classification model as ``...ForSequenceClassification``, with one label as a rule.

    A score head found in the checkpoint is kept; otherwise a new one is made. A LoRA adapter that was saved with its
    head is loaded on the base that its config names, and merged into it.

    Args:
        path: A Hugging Face directory or a hub name, of a model or of an adapter.
        dtype: Type the weights are held in. The default, float32 under autocast, trains most exactly.
        revision: Commit, tag or branch on the hub; its main branch if None. A commit keeps a recipe reproducible.
        hub: ``"huggingface"`` or ``"modelscope"``; what ``XRLHF_HUB`` says, else Hugging Face, if None.
        trust_remote_code: Run the repository's own model code. Only for sources you trust.
        head_init: ``"zero"`` starts every score at 0; ``"normal"`` draws from N(0, 1/(hidden+1)), the usual start of
            reward heads (Stiennon et al. 2020, arXiv 2009.01325, appendix).
        require_head: Refuse a checkpoint without a trained head, in place of making a new one.
        num_outputs: Labels, that is numbers for each response; a reward model sets it to what its head needs. None for
            the attributes that the directory was exported with, one score where it names none.
        quantization: Options of :class:`transformers.BitsAndBytesConfig`, such as ``dict(load_in_4bit=True)``, to hold
            the linear layers in 4 bits (NF4) or 8; adapters are then trained on them (QLoRA, arXiv 2305.14314). The
            head stays in float32, and ``dtype`` is the type of what is not quantised.

    Raises:
        ModelError: Nothing loadable, an architecture without a score head, a head of another size, weights missing.
        MissingExtraError: ``quantization`` without bitsandbytes installed.
        DeviceError: ``quantization`` where bitsandbytes cannot compute.
    """
    _check_head_init(head_init)
    kind = _RewardKind(num_outputs, head_init, require_head)
    return load_pretrained(
        kind,
        path,
        torch_dtype(dtype),
        revision=revision,
        hub=hub,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
    )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that was read, and how what was read fits it.

    Args:
        model: It.
        missing: Names of its weights that were not there.
        mismatched: Names of weights that were there in another shape.
        unexpected: Names of weights that were there and that it has no place for.
    """

    model: PreTrainedModel
    missing: Set[str] = frozenset()
    mismatched: Set[str] = frozenset()
    unexpected: Set[str] = frozenset()


class PretrainedKind(Protocol):
    """What a checkpoint is read as.

    Attributes:
        auto_class: The class of transformers that reads it.
        name: What it is called in messages.
        kept_layers: Names of layers that are not quantised.
    """

    auto_class: ClassVar[Any]
    name: ClassVar[str]
    kept_layers: ClassVar[tuple[str, ...]]

    def prepare(self, config: PreTrainedConfig, path: str) -> None:
        """Refuse the config of another kind, and complete one of this kind, before a model is made of it."""

    def checked(self, loaded: Loaded, path: str) -> PreTrainedModel:
        """The model, if all of it was there."""

    def of_base(self) -> PretrainedKind:
        """What the base of an adapter is read as."""

    def merged(self, base: PreTrainedModel, location: str, revision: str | None) -> PreTrainedModel:
        """A base in float32 with an adapter merged into it."""

    def in_dtype(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        """The model with its weights in another type, but for what stays in float32."""


def load_pretrained(
    kind: PretrainedKind,
    path: str,
    dtype: torch.dtype,
    *,
    revision: str | None = None,
    hub: str | None = None,
    trust_remote_code: bool = False,
    quantization: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A model from a directory or the hub; an adapter on the base that its config names, and merged into it.

    Where tensors are made without values (:func:`~xrlhf.models.shapes.shapes_alone`) a config is all that is read.

    Args:
        kind: What it is read as.
        path: A Hugging Face directory or a hub name, of a model or of an adapter.
        dtype: Type the weights are held in.
        revision: Commit, tag or branch on the hub; its main branch if None.
        hub: ``"huggingface"`` or ``"modelscope"``; what ``XRLHF_HUB`` says, else Hugging Face, if None.
        trust_remote_code: Run the repository's own model code.
        quantization: Options of :class:`transformers.BitsAndBytesConfig`.

    Raises:
        ModelError: Nothing loadable, or what is there is not of this kind.
        MissingExtraError: ``quantization`` without bitsandbytes installed.
        DeviceError: ``quantization`` where bitsandbytes cannot compute.
    """
    if are_shapes_alone():
        return _by_shapes(kind, path, dtype, revision=revision, hub=hub, trust_remote_code=trust_remote_code)
    location = model_location(path, revision=revision, hub=hub)
    register_internlm2()
    adapter = find_adapter(location, revision)
    if adapter is not None:
        if quantization is not None:
            raise ModelError(
                f"{path!r} is an adapter, which cannot be put on a quantised base: merge it first with 'xrlhf convert "
                "merge BASE ADAPTER OUT', and quantise OUT"
            )
        base = base_of(adapter, path)
        try:
            model = load_pretrained(kind.of_base(), base, torch.float32, hub=hub, trust_remote_code=trust_remote_code)
        except ModelError as error:
            raise ModelError(f"{path!r} is an adapter whose base cannot be loaded: {error}") from error
        return kind.in_dtype(kind.merged(model, location, revision), dtype)
    check_has_config(location, path)
    extra: dict[str, Any] = {}
    if quantization is not None:
        extra["quantization_config"] = quantisation_config(quantization, kind.kept_layers)
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
        kind.prepare(config, path)
        model, info = kind.auto_class.from_pretrained(
            location,
            config=config,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **extra,
        )
    except ModelError:
        raise
    except Exception as error:
        raise loading_error(error, kind.name, path, revision=revision, hub=hub) from error
    keep_layout(model)
    names = {
        key: frozenset(str(item[0] if isinstance(item, tuple) else item) for item in info.get(f"{key}_keys", ()))
        for key in ("missing", "mismatched", "unexpected")
    }
    return kind.checked(Loaded(model, **names), path)


def _by_shapes(
    kind: PretrainedKind,
    path: str,
    dtype: torch.dtype,
    *,
    revision: str | None,
    hub: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """What :func:`load_pretrained` gives, known by its shapes alone: its config is read, and no weights."""
    location = pretrained_location(path, "model", revision=revision, hub=hub, only=("*.json", "*.py"))
    register_internlm2()
    adapter = find_adapter(location, revision)
    if adapter is not None:
        base = base_of(adapter, path)
        return _by_shapes(kind.of_base(), base, dtype, revision=None, hub=hub, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
        kind.prepare(config, path)
        model = kind.auto_class.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except ModelError:
        raise
    except Exception as error:
        raise loading_error(error, "config", path, revision=revision, hub=hub) from error
    return kind.in_dtype(model, dtype)


@dataclasses.dataclass(frozen=True)
class _RewardKind:
    """A ``...ForSequenceClassification``, whose head stays in float32.

    Args:
        num_outputs: What the head gives; None for what the config says.
        head_init: How a new head begins.
        require_head: Refuse a checkpoint without one.
    """

    num_outputs: int | None
    head_init: str = "zero"
    require_head: bool = False

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    name: ClassVar[str] = "model"
    kept_layers: ClassVar[tuple[str, ...]] = HEAD_NAMES

    def prepare(self, config: PreTrainedConfig, path: str) -> None:
        config.num_labels = head_of_config(config).num_outputs if self.num_outputs is None else self.num_outputs

    def of_base(self) -> _RewardKind:
        return _RewardKind(self.num_outputs)

    def merged(self, base: PreTrainedModel, location: str, revision: str | None) -> PreTrainedModel:
        return merge_adapter(base, score_head(base, self.num_outputs or 1)[0], location, revision)

    def in_dtype(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        model.to(dtype)  # type: ignore[arg-type]
        score_head(model, model.config.num_labels or 1)[1].float()
        return model

    def checked(self, loaded: Loaded, path: str) -> PreTrainedModel:
        model, missing, mismatched = loaded.model, loaded.missing, loaded.mismatched
        num_outputs = model.config.num_labels or 1
        head_name, head = score_head(model, num_outputs)
        check_weights(
            path,
            model,
            missing={key for key in missing if not _is_of(head_name, key)},
            mismatched={key for key in mismatched if not _is_of(head_name, key)},
        )
        if mismatched:
            wanted = "one score: a reward model has num_labels=1" if num_outputs == 1 else f"{num_outputs} attributes"
            raise ModelError(f"{path!r} has a {head_name} head that does not give {wanted}")
        if any(_is_of(head_name, key) for key in missing):
            if type(model).__name__ in (model.config.architectures or ()):
                raise ModelError(
                    f"{path!r} says it is a {type(model).__name__}, but its weights hold no {head_name} head: a part "
                    "of them is missing"
                )
            if self.require_head:
                raise ModelError(
                    f"{path!r} holds no {head_name} head: it is a language model, not a reward model; name what "
                    "'xrlhf convert' wrote, or another model with a trained head"
                )
            _init_head(head, self.head_init)
        head.float()
        return model


@MODELS.register_module()
def backbone_from_config(
    model_type: str, *, dtype: str = "float32", head_init: str = "zero", num_outputs: int = 1, **config: Any
) -> PreTrainedModel:
    """A model with random weights, from its config alone: no download.

    Args:
        model_type: A type that ``transformers`` knows, such as ``"llama"``.
        dtype: Type the weights are held in.
        head_init: As in :func:`backbone_from_pretrained`.
        num_outputs: As in :func:`backbone_from_pretrained`.
        **config: Fields of that type's config, such as ``hidden_size``.

    Raises:
        ModelError: An unknown type, field or value.
    """
    _check_head_init(head_init)
    weights_dtype = torch_dtype(dtype)
    if config.pop("num_labels", 1) != 1:
        raise ModelError("a reward model gives one score: leave num_labels out (several attributes: model.head)")
    built = config_of_type(model_type, config, num_labels=num_outputs)
    try:
        model = AutoModelForSequenceClassification.from_config(built, dtype=weights_dtype)
    except Exception as error:
        raise ModelError(f"no {model_type!r} model could be made from its config: {error_line(error)}") from error
    _, head = score_head(model, num_outputs)
    _init_head(head, head_init)
    head.float()
    return model


def model_location(path: str, *, revision: str | None = None, hub: str | None = None) -> str:
    """``path`` as ``from_pretrained`` takes it, for a model's config and weights.

    Raises:
        ModelError: As :func:`~xrlhf.models.location.pretrained_location`.
    """
    return pretrained_location(path, "model", revision=revision, hub=hub, leave_out=_NEVER_READ)


def check_has_config(location: str, path: str) -> None:
    """Refuse a directory without a config.json, which the recipe calls ``path``.

    Raises:
        ModelError: There is none.
    """
    if Path(location).is_dir() and not (Path(location) / "config.json").is_file():
        raise ModelError(f"no model could be loaded from {path!r}: it holds no config.json")


def check_weights(path: str, model: PreTrainedModel, *, missing: Set[str], mismatched: Set[str]) -> None:
    """Refuse a checkpoint that did not give all weights: transformers would leave random ones in their places.

    Args:
        path: What the recipe calls the checkpoint.
        model: What was made of it.
        missing: Names of weights that it lacks.
        mismatched: Names of weights that it has in another shape.

    Raises:
        ModelError: There are such weights.
    """
    if others := sorted(missing - mismatched):
        raise ModelError(
            f"{path!r} lacks {len(others)} of the weights of {type(model).__name__}, such as {others[0]!r}"
        )
    if others := sorted(mismatched):
        raise ModelError(
            f"{path!r} has {len(others)} weights of another shape than its config.json says, such as {others[0]!r}"
        )


def config_of_type(model_type: str, fields: Mapping[str, Any], **more: Any) -> PreTrainedConfig:
    """The config of a type that ``transformers`` knows.

    Args:
        model_type: Such as ``"llama"``.
        fields: Fields that the recipe gives, which the type must have.
        **more: Fields that any type takes.

    Raises:
        ModelError: An unknown type, field or value.
    """
    register_internlm2()
    try:
        built = AutoConfig.for_model(model_type, **more, **fields)
    except Exception as error:
        raise ModelError(f"no {model_type!r} model could be made from its config: {error_line(error)}") from error
    _check_fields(built, fields)
    return built


def _check_fields(built: PreTrainedConfig, given: Mapping[str, Any]) -> None:
    """Refuse fields that the config keeps but no model reads: transformers takes any name without a word."""
    if not dataclasses.is_dataclass(built):
        return
    known = {field.name for field in dataclasses.fields(built)} | set(built.attribute_map)
    known |= set(inspect.signature(type(built).__init__).parameters)
    taken_over = set(getattr(built, "rope_parameters", None) or ())
    for name in given:
        # Older names, such as rope_theta, move into a field; most of them leave no attribute of their own.
        if name not in known | taken_over and name in vars(built):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ModelError(f"a {built.model_type!r} config has no field {name!r}{hint}")


def score_head(model: PreTrainedModel, num_outputs: int = 1) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer that turns a hidden state into a score, or into several attributes.

    Raises:
        ModelError: The architecture has none.
    """
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear) and head.out_features == num_outputs:
            return name, head
    wanted = "one output" if num_outputs == 1 else f"{num_outputs} outputs"
    raise ModelError(
        f"{type(model).__name__} has no linear score head named {' or '.join(HEAD_NAMES)} with {wanted}, "
        "so it cannot serve as a reward model"
    )


def disable_dropout(model: nn.Module) -> None:
    """Switch every random element of a model off, in place, and leave its config as it is.

    Packed training relies on a step's gradient being a function of its groups alone; dropout would also make scores
    in training and in serving differ, and reward models are commonly trained without it.

    Args:
        model: A model before adapters are added, so that their own dropout stays as asked for.
    """
    switched = set()
    for module in model.modules():
        names = [name for name in vars(module) if "drop" in name or "jitter" in name]
        if isinstance(module, _DROPOUT_LAYERS):
            names.append("p")
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                switched.add(f"{type(module).__name__}.{name}")
    if switched:
        logger.info("dropout is off in %s: %s", type(model).__name__, ", ".join(sorted(switched)))


def _is_of(head_name: str, key: str) -> bool:
    return key.split(".")[0] == head_name


def _check_head_init(how: str) -> None:
    if how not in ("zero", "normal"):
        raise ModelError(f"head_init must be 'zero' or 'normal', got {how!r}")


def _init_head(head: nn.Linear, how: str) -> None:
    with torch.no_grad():
        if how == "zero":
            head.weight.zero_()
        else:
            head.weight.normal_(std=(head.in_features + 1) ** -0.5)
        if head.bias is not None:
            head.bias.zero_()


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, the first one first; empty where the model does not say which modules they are."""
    names = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with ids the model has no row for, save those of tokens that the project itself added.

    Raises:
        ModelError: They do not belong together.
    """
    rows = len(embedding_weight(model))
    new_tokens = set(getattr(tokenizer, "xrlhf_new_tokens", []))
    largest = max(index for token, index in tokenizer.get_vocab().items() if token not in new_tokens)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {largest} but the model embeds only {rows} tokens: "
            "use the tokenizer that belongs to this model"
        )


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model a row for every token the project itself added, and the tokenizer's special ids.

    A new row is the mean of the rows there were.

    Raises:
        ModelError: The tokenizer is larger than the model for any other reason: they do not belong together.
    """
    check_vocabulary(model, tokenizer)
    rows = len(embedding_weight(model))
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        grow_embeddings(model, largest + 1)
        new_tokens = ", ".join(tokenizer.xrlhf_new_tokens)
        logger.info("grew the embeddings from %d to %d rows for %s", rows, largest + 1, new_tokens)
    model.config.pad_token_id = tokenizer.pad_token_id
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(model.config, name, getattr(tokenizer, name))
