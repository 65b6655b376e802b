"""Language models: what policies are made of, from a directory or from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from xrlhf.errors import ModelError, error_line
from xrlhf.models.adapters import find_adapter, merge_adapter
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.loading import (
    HEAD_NAMES,
    Loaded,
    check_weights,
    config_of_type,
    load_pretrained,
    model_location,
    torch_dtype,
)
from xrlhf.models.shapes import are_shapes_alone
from xrlhf.registry import MODELS

__all__ = ["causal_lm_from_config", "causal_lm_from_pretrained", "causal_lm_with_adapter"]

# Classes that end in these words share their layers with language models, so that transformers would load them as one.
_OTHER_KINDS = {
    "ForSequenceClassification": "a reward model or another classifier",
    "ForRewardModel": "a reward model",
    "ForTokenClassification": "a model that labels tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForMaskedLM": "a model that fills gaps in a text",
}


@MODELS.register_module()
def causal_lm_from_pretrained(
    path: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    hub: str | None = None,
    trust_remote_code: bool = False,
    quantization: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A language model as ``...ForCausalLM``, with all of its weights.

    A LoRA adapter is loaded on the base that its config names, and merged into it.

    Args:
        path: A Hugging Face directory or a hub name, of a model or of an adapter.
        dtype: Type the weights are held in. The default, float32 under autocast, trains most exactly.
        revision: Commit, tag or branch on the hub; its main branch if None. A commit keeps a recipe reproducible.
        hub: ``"huggingface"`` or ``"modelscope"``; what ``XRLHF_HUB`` says, else Hugging Face, if None.
        trust_remote_code: Run the repository's own model code. Only for sources you trust.
        quantization: Options of :class:`transformers.BitsAndBytesConfig`, such as ``dict(load_in_4bit=True)``, to hold
            the linear layers in 4 bits (NF4) or 8; adapters are then trained on them (QLoRA, arXiv 2305.14314). The
            output layer is left as it is, and ``dtype`` is the type of what is not quantised.

    Returns:
        The model, in eval mode, on the CPU unless it is quantised.

    Raises:
        ModelError: Nothing loadable, a model of another kind (a reward model, one that reads ahead), weights missing.
        MissingExtraError: ``quantization`` without bitsandbytes installed.
        DeviceError: ``quantization`` where bitsandbytes cannot compute.
    """
    return load_pretrained(
        _LanguageModelKind(),
        path,
        torch_dtype(dtype),
        revision=revision,
        hub=hub,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
    )


class _LanguageModelKind:
    """A ``...ForCausalLM``, in eval mode."""

    auto_class: ClassVar[Any] = AutoModelForCausalLM
    name: ClassVar[str] = "language model"
    kept_layers: ClassVar[tuple[str, ...]] = ("lm_head", "embed_out", "output")

    def prepare(self, config: PreTrainedConfig, path: str) -> None:
        """Refuse what its config calls a model of another kind: with tied embeddings no weight would be missing."""
        for name in config.architectures or ():
            for ending, kind in _OTHER_KINDS.items():
                if name.endswith(ending):
                    raise ModelError(f"{path!r} is {kind} ({name}), not a language model")

    def of_base(self) -> _LanguageModelKind:
        return self

    def merged(self, base: PreTrainedModel, location: str, revision: str | None) -> PreTrainedModel:
        return merge_adapter(base, None, location, revision)

    def in_dtype(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        model.to(dtype)  # type: ignore[arg-type]
        return model.eval()

    def checked(self, loaded: Loaded, path: str) -> PreTrainedModel:
        model, missing = loaded.model, loaded.missing
        if heads := sorted(key for key in loaded.unexpected if key.split(".")[0] in HEAD_NAMES):
            raise ModelError(f"{path!r} holds {heads[0]!r}: it is a reward model, not a language model")
        if missing and missing <= _output_weights(model):
            raise ModelError(
                f"{path!r} holds no {sorted(missing)[0]!r}, which gives the next token: it is no language model"
            )
        check_weights(path, model, missing=missing, mismatched=loaded.mismatched)
        _check_reads_backwards(model, path)
        return model.eval()


@MODELS.register_module()
def causal_lm_from_config(model_type: str, *, dtype: str = "float32", **config: Any) -> PreTrainedModel:
    """A language model with random weights, from its config alone: no download.

    Args:
        model_type: A type that ``transformers`` knows, such as ``"llama"``.
        dtype: Type the weights are held in.
        **config: Fields of that type's config, such as ``hidden_size``.

    Returns:
        The model, in eval mode.

    Raises:
        ModelError: An unknown type, field or value, or a type that is no language model.
    """
    weights_dtype = torch_dtype(dtype)
    built = config_of_type(model_type, config)
    try:
        model = AutoModelForCausalLM.from_config(built, dtype=weights_dtype)
    except Exception as error:
        raise ModelError(
            f"no {model_type!r} language model could be made from its config: {error_line(error)}"
        ) from error
    _check_reads_backwards(model, f"model_type={model_type}")
    return cast(PreTrainedModel, model.eval())


def causal_lm_with_adapter(
    path: str,
    adapter: str,
    *,
    dtype: str = "float32",
    hub: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A language model with a LoRA adapter merged into it, whichever base the adapter's config names.

    Args:
        path: The base, as in :func:`causal_lm_from_pretrained`; merging is done in float32.
        adapter: A Hugging Face directory or a hub name of the adapter.
        dtype: Type the weights are held in afterwards.
        hub: As in :func:`causal_lm_from_pretrained`.
        trust_remote_code: As in :func:`causal_lm_from_pretrained`.

    Raises:
        ModelError: Either cannot be loaded, or the adapter is for another base or for a reward model.
    """
    weights_dtype = torch_dtype(dtype)
    location = model_location(adapter, hub=hub)
    if find_adapter(location) is None:
        raise ModelError(f"{adapter!r} holds no adapter: there is no adapter_config.json, or a whole model beside it")
    model = causal_lm_from_pretrained(path, hub=hub, trust_remote_code=trust_remote_code)
    kind = _LanguageModelKind()
    return kind.in_dtype(kind.merged(model, location, None), weights_dtype)


def _output_weights(model: PreTrainedModel) -> set[str]:
    """The names of the weights that give a logit for every token."""
    output = model.get_output_embeddings()
    if output is None:
        return set()
    prefix = next(name for name, module in model.named_modules() if module is output)
    return {f"{prefix}.{name}" for name, _ in output.named_parameters()}


def _check_reads_backwards(model: PreTrainedModel, path: str) -> None:
    """Refuse a model in which a token sees what follows it.

    Some families read in both directions unless their config says ``is_decoder=True``, and others have that field and
    never look at it; so it is tried out.
    """
    if getattr(model.config, "is_decoder", True) or are_shapes_alone(embedding_weight(model)):
        return
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=model.device) % model.config.vocab_size
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        first, second = model(input_ids=ids).logits[:, 0].float()
    model.train(was_training)
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
        raise ModelError(
            f"{path} reads text in both directions, so it is no language model; if it was trained as one, set "
            "is_decoder=true in its config"
        )
