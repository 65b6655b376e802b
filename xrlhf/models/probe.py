"""A start-up probe: in which layout does this architecture give the hidden states that it gives alone?"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from xrlhf.data.packing import pack
from xrlhf.data.padding import unpack
from xrlhf.errors import ModelError, error_line
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.hidden_states import packed_states, padded_states
from xrlhf.models.last_layer import ShortLastLayer
from xrlhf.models.quantised import is_quantised
from xrlhf.models.shapes import are_shapes_alone, batch_on_paper, paper_mode, put_on_paper
from xrlhf.ops.attention import register_segment_attention
from xrlhf.structures import PackedBatch, TokenizedGroup, as_ids

__all__ = ["LAYOUTS", "check_packing", "check_padding", "choose_layout"]

logger = logging.getLogger("xrlhf")

LAYOUTS = ("auto", "packed", "padded")
"""How groups are given to a model: chosen by the probe, in one packed row, or one conversation a row."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1
_MODEL_FAILURES = (ModelError, TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError)


def choose_layout(
    model: PreTrainedModel, head: nn.Module | None = None, *, layout: str = "auto", static_shapes: bool = False
) -> str:
    """``"packed"`` where that is right for this model and device, else ``"padded"``; what is returned has been checked.

    A model that is known by its shapes alone has no states to compare: it packs if it runs packed.

    Args:
        model: As in :func:`check_packing`.
        head: As in :func:`check_packing`.
        layout: ``"packed"`` or ``"padded"`` to have that and nothing else checked.
        static_shapes: The device compiles a program for every shape, so packed rows are out of the question.

    Raises:
        ModelError: An unknown layout, or neither is right for this model.
    """
    if layout not in LAYOUTS:
        raise ModelError(f"layout must be 'auto', 'packed' or 'padded', got {layout!r}")
    name = type(model).__name__
    if layout == "auto" and not static_shapes:
        try:
            _check_shortened_packing(model, head)
        except ModelError as error:
            obstacle = error
        else:
            return "packed"
        check_padding(model, head)
        logger.warning("%s; it runs on padded rows instead: prompts are repeated for every response", obstacle)
    elif layout == "packed":
        _check_shortened_packing(model, head)
        return "packed"
    else:
        check_padding(model, head, static_shapes=static_shapes)
        reason = "the recipe says layout='padded'" if layout == "padded" else "the device needs static shapes"
        logger.info("%s runs on padded rows, prompts repeated for every response: %s", name, reason)
    return "padded"


def _check_shortened_packing(model: PreTrainedModel, head: nn.Module | None) -> None:
    """Pack, with a shorter last layer where the hidden states that are read stay the same."""
    short = ShortLastLayer(model)
    try:
        check_packing(model, head)
    except ModelError:
        if not short:
            raise
        short.remove()
        check_packing(model, head)


@torch.no_grad()
def check_packing(model: PreTrainedModel, head: nn.Module | None = None) -> None:
    """Run two short groups packed and each conversation alone, and compare.

    Families differ in how they build positions and masks; some ignore the packed layout without a word. With
    ``head``, what is compared is that layer's input in the model's own forward pass, so a model that changes the
    hidden states before its head (pools or projects them) is found as well. The model's attention implementation and
    mode are left as they were found.

    Args:
        model: A transformers model with a backbone under its ``base_model_prefix``.
        head: The layer of ``model`` that is going to read the packed hidden states.

    Raises:
        ModelError: The architecture has no replaceable attention, or packs wrongly.
    """
    name = type(model).__name__
    groups = _two_groups(model)
    if are_shapes_alone(embedding_weight(model)):
        _check_packing_on_paper(model, groups)
        return
    batch = pack(groups).to(embedding_weight(model).device)
    with _evaluating(model):
        alone = _last_hidden_states_alone(model, head, groups)
        before = model.config._attn_implementation
        try:
            attention = register_segment_attention()
            with _quiet_transformers():
                model.set_attn_implementation(attention)
            if model.config._attn_implementation != attention:
                raise ModelError("its attention cannot be replaced")
            packed = _last_hidden_states_packed(model, batch)
        except _MODEL_FAILURES as error:
            raise ModelError(f"{name} cannot be trained on packed groups: {error_line(error)}") from error
        finally:
            if model.config._attn_implementation != before:
                model.set_attn_implementation(before or "eager")
    difference = _difference(model, packed, alone)
    if not difference <= _tolerance(model):
        raise ModelError(
            f"{name} gives other hidden states when groups are packed (relative difference {difference:.2g}), so "
            "training on packed groups would be wrong for it"
        )


def _check_packing_on_paper(model: PreTrainedModel, groups: list[TokenizedGroup]) -> None:
    """As :func:`check_packing`, of a model that has no values to compare: only whether it runs packed."""
    own = copy.deepcopy(model)
    mode = paper_mode()
    put_on_paper(own, mode)
    # Whoever builds without values has made that the default of new tensors.
    with torch.device("cpu"), mode, _quiet_transformers():
        try:
            own.set_attn_implementation(register_segment_attention())
            _last_hidden_states_packed(own, batch_on_paper(pack(groups), mode))
        except _MODEL_FAILURES as error:
            raise ModelError(
                f"{type(model).__name__} cannot be trained on packed groups: {error_line(error)}"
            ) from error


@torch.no_grad()
def check_padding(model: PreTrainedModel, head: nn.Module | None = None, *, static_shapes: bool = False) -> None:
    """Run conversations of different length padded on the right in one batch and each alone, and compare.

    Args:
        model: As in :func:`check_packing`; keeps its own attention.
        head: As in :func:`check_packing`.
        static_shapes: Pad as for a device that needs them.

    Raises:
        ModelError: The architecture lets padding change what stands before it, or changes the hidden states before
            its head.
    """
    if are_shapes_alone(embedding_weight(model)):
        return
    name = type(model).__name__
    groups = _two_groups(model)
    batch = pack(groups).to(embedding_weight(model).device)
    with _evaluating(model):
        alone = _last_hidden_states_alone(model, head, groups)
        try:
            rows = unpack(
                batch, static=static_shapes, max_length=getattr(model.config, "max_position_embeddings", None)
            )
            padded = padded_states(model, rows.slices[0]).index_select(0, rows.place_of).float()
        except _MODEL_FAILURES as error:
            raise ModelError(f"{name} cannot be trained on padded rows: {error_line(error)}") from error
    difference = _difference(model, padded, alone)
    if not difference <= _tolerance(model):
        raise ModelError(
            f"{name} gives other hidden states when rows are padded on the right, or changes them before its head "
            f"reads them (relative difference {difference:.2g}), so it cannot be trained here"
        )


def _tolerance(model: PreTrainedModel) -> float:
    # 8-bit layers round what they read as well, over all rows of a batch together.
    return _LOW_PRECISION_TOLERANCE if is_quantised(model) else _TOLERANCE.get(model.dtype, _LOW_PRECISION_TOLERANCE)


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the warning that an attention cannot be set: that is what is being found out."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _difference(model: PreTrainedModel, got: Tensor, alone: Tensor) -> float:
    """The largest distance of two states, relative to the size of the one computed alone."""
    if alone.shape != got.shape:
        raise ModelError(f"{type(model).__name__} changes the hidden state of the last token before its head reads it")
    return float(((got - alone).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-6)).max())


def _two_groups(model: PreTrainedModel) -> list[TokenizedGroup]:
    """Two groups of two short responses; padding ids are kept out, since some families skip them."""
    generator = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(len(embedding_weight(model))), [model.config.pad_token_id or 0])
    return [
        TokenizedGroup(
            as_ids(generator.choice(usable, prompt)), tuple(as_ids(generator.choice(usable, size)) for size in sizes)
        )
        for prompt, sizes in ((4, (3, 2)), (3, (2, 4)))
    ]


def _last_hidden_states_alone(model: PreTrainedModel, head: nn.Module | None, groups: list[TokenizedGroup]) -> Tensor:
    """(responses, H) float32: what the head reads, or the backbone gives, for every conversation run by itself."""
    try:
        return _run_alone(model, head, groups)
    except _MODEL_FAILURES as error:
        raise ModelError(
            f"{type(model).__name__} cannot read a plain sequence of tokens: {error_line(error)}"
        ) from error


def _run_alone(model: PreTrainedModel, head: nn.Module | None, groups: list[TokenizedGroup]) -> Tensor:
    device = embedding_weight(model).device
    seen: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        # The head may be held in another type than the backbone; what it computes here is thrown away.
        return (arguments[0].to(next(module.parameters()).dtype), *arguments[1:])

    handle = None if head is None else head.register_forward_pre_hook(catch)
    try:
        for group in groups:
            for response in group.response_ids:
                ids = np.concatenate([group.prompt_ids, response]).astype(np.int64)
                row = torch.from_numpy(ids)[None].to(device)
                if head is None:
                    seen.append(getattr(model, model.base_model_prefix)(row, use_cache=False).last_hidden_state)
                else:
                    model(row, use_cache=False)
    finally:
        if handle is not None:
            handle.remove()
    return torch.stack([(states[0, -1] if states.dim() == 3 else states[0]).float() for states in seen])


def _last_hidden_states_packed(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """(responses, H) float32: the hidden state at the end of every response of a packed row."""
    calls: list[str] = []
    states = packed_states(model, batch, segment_calls=calls)
    num_layers = getattr(model.config, "num_hidden_layers", 1)
    if len(calls) < num_layers:
        raise ModelError(f"only {len(calls)} of its {num_layers} layers have attention that can be replaced")
    return states.float()
