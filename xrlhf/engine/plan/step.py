"""What one optimizer step holds at once on a device that has everything, watched on shapes alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xrlhf.engine.optim import build_optim_wrapper
from xrlhf.engine.plan.live_bytes import LiveBytes, Peak
from xrlhf.errors import UserError, error_line
from xrlhf.models.actor_critic import ActorCritic
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.group_model import GroupModel
from xrlhf.models.loading import decoder_layers
from xrlhf.models.offload import HostActivations
from xrlhf.models.shapes import batch_on_paper, paper_mode, put_on_paper
from xrlhf.ops.log_probs import most_bytes_held
from xrlhf.structures import PackedBatch

__all__ = ["Sizes", "StepNeeds", "sizes_of", "step_needs"]

logger = logging.getLogger("xrlhf")


@dataclass(frozen=True)
class Sizes:
    """What a model is made of.

    Args:
        weights: Bytes of all weights and buffers.
        trained: Bytes of the trained weights, and so of their gradients.
        num_weights: Numbers in all weights.
        num_trained: Numbers in the trained ones.
        layers: Bytes of the weights of every layer.
        trained_layers: Bytes of the trained weights of every layer.
        largest: Bytes of the largest trained weight.
        small: Bytes of weights of at most 100,000 numbers, which DeepSpeed does not split.
        of_reference: Bytes of the weights of a frozen model beside the trained one, which no backward pass reads.
        runs_reference: Whether a step runs that model; where answers are drawn it runs before.
    """

    weights: int
    trained: int
    num_weights: int
    num_trained: int
    layers: tuple[int, ...]
    trained_layers: tuple[int, ...]
    largest: int
    small: int
    of_reference: int = 0
    runs_reference: bool = True

    @property
    def of_reference_in_step(self) -> int:
        """Bytes of the weights of a frozen model that a step runs."""
        return self.of_reference if self.runs_reference else 0

    @property
    def in_step(self) -> int:
        """Bytes of all weights that a step runs."""
        return self.weights - self.of_reference + self.of_reference_in_step

    @property
    def rest(self) -> int:
        """Bytes of weights outside the layers: embeddings, the last norm, the head."""
        return self.weights - sum(self.layers)

    @property
    def trained_rest(self) -> int:
        """Bytes of trained weights outside the layers."""
        return self.trained - sum(self.trained_layers)

    @property
    def largest_layer(self) -> int:
        """Bytes of the largest layer, 0 where the model does not say what its layers are."""
        return max(self.layers, default=0)

    @property
    def largest_trained_layer(self) -> int:
        """Bytes of trained weights in the layer that has most."""
        return max(self.trained_layers, default=0)


@dataclass(frozen=True)
class StepNeeds:
    """Bytes of one optimizer step where nothing is split.

    Args:
        sizes: The model.
        states: The optimizer's state.
        update: What an update of the weights holds for a moment, beside weights, gradients and state.
        first: The peak of a forward and backward pass that begins without gradients, above weights and state.
        later: The same where gradients of an earlier micro-batch are there.
        split: The peak where every gradient leaves as soon as it is whole, as where gradients are split.
        on_host: Activations that wait in the memory of the host.
        note: Why activations are a rule of thumb and were not watched; None where they were.
    """

    sizes: Sizes
    states: int
    update: int
    first: Peak
    later: Peak
    split: Peak
    on_host: int = 0
    note: str | None = None


def step_needs(model: GroupModel, batch: PackedBatch, optim_wrapper: Mapping[str, Any], sizes: Sizes) -> StepNeeds:
    """Watch a forward and backward pass and an update of a model that is known by its shapes alone.

    Args:
        model: Made inside :func:`~xrlhf.models.shapes.shapes_alone`; it is of no use afterwards.
        batch: The micro-batch, with values.
        optim_wrapper: The recipe's section.
        sizes: Of the model.
    """
    mode = paper_mode()
    put_on_paper(model, mode)
    with mode:
        try:
            first, later, split, on_host = _watch_passes(model, batch_on_paper(batch, mode), sizes)
            note = None
        except UserError:
            raise
        except Exception as error:
            # Code that decides by values (experts that are sent tokens) cannot run without them.
            note = f"{type(model.hf_model).__name__} does not run on shapes alone ({error_line(error, 120)})"
            logger.debug("a plan falls back to a rule of thumb", exc_info=True)
            first, later, split = _rule_of_thumb(model, batch, sizes)
            on_host = 0
        states, update = _watch_update(model, optim_wrapper)
    return StepNeeds(sizes, states, update, first, later, split, on_host, note)


def sizes_of(model: GroupModel, quantised_bits: Mapping[str, int] | None = None) -> Sizes:
    """Count a model's weights.

    Args:
        model: The model.
        quantised_bits: Bits in which the linear layers of a frozen model are held, by its name in ``model``:
            ``backbone``, ``reference`` or ``critic``. None where nothing is quantised.
    """
    bits_of = _bits_by_name(model, quantised_bits or {})

    def held(name: str, weight: Tensor) -> int:
        bits = bits_of.get(name)
        if bits is not None:
            # bitsandbytes: a float32 scale for every 64 numbers in 4 bits, and for every row in 8 bits.
            scales = weight.numel() // 64 if bits == 4 else weight.shape[0]
            return weight.numel() * bits // 8 + 4 * scales
        return weight.numel() * weight.element_size()

    named = dict(model.named_parameters())
    of = {name: held(name, weight) for name, weight in named.items()}
    trained = {name for name, weight in named.items() if weight.requires_grad}
    by_id = {id(weight): name for name, weight in named.items()}
    layers = [
        [by_id[id(weight)] for weight in layer.parameters() if id(weight) in by_id]
        for part in model.transformers_models()
        for layer in decoder_layers(part)
    ]
    return Sizes(
        weights=sum(of.values()) + sum(b.numel() * b.element_size() for b in model.buffers()),
        trained=sum(of[name] for name in trained),
        num_weights=sum(weight.numel() for weight in named.values()),
        num_trained=sum(named[name].numel() for name in trained),
        layers=tuple(sum(of[name] for name in names) for names in layers),
        trained_layers=tuple(sum(of[name] for name in names if name in trained) for names in layers),
        largest=max((of[name] for name in trained), default=0),
        small=sum(of[name] for name, weight in named.items() if weight.numel() <= 100_000),
        of_reference=sum(size for name, size in of.items() if name.split(".")[0] == "reference"),
        runs_reference=not isinstance(model, ActorCritic),
    )


def _bits_by_name(model: GroupModel, quantised_bits: Mapping[str, int]) -> dict[str, int]:
    """Weights of linear layers of the base: not those of a head or an output layer, and not the adapters'."""
    whole = {id(module) for module in getattr(model, "float32_modules", ())}
    whole |= {id(part.get_output_embeddings()) for part in model.transformers_models()}
    kept = tuple(f"{name}." for name, module in model.named_modules() if id(module) in whole)
    return {
        f"{name}.weight": quantised_bits[part]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (part := name.split(".")[0]) in quantised_bits
        and not module.weight.requires_grad
        and not {"lora_A", "lora_B"} & set(name.split("."))
        and not f"{name}.".startswith(kept)
    }


def _watch_passes(model: GroupModel, batch: PackedBatch, sizes: Sizes) -> tuple[Peak, Peak, Peak, int]:
    counter = LiveBytes([*model.parameters(), *model.buffers()])
    offload = _offload_of(counter)
    model.host_activations = offload
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]

    def run(*, single_forward: bool) -> tuple[Peak, Peak]:
        model.single_forward = single_forward
        offload.bytes_moved = 0
        counter.phase = "the forward pass"
        counter.reset_peak()
        total = _sum_to_learn_from(model, batch)
        counter.phase = "the backward pass"
        total.backward()
        return counter.peak, counter.peak_with_gradients

    handles = [weight.register_post_accumulate_grad_hook(counter.drop_gradient) for weight in trained]
    with counter:
        without, first = run(single_forward=False)
        # Strategies that split the model run padded rows in one pass; a packed row is one pass anyway.
        layouts = {model.layout, getattr(model, "reference_layout", model.layout)}
        split = without if layouts == {"packed"} else run(single_forward=True)[0]
    for handle in handles:
        handle.remove()
    later = Peak(without.total + sizes.trained, sizes.trained, without.phase)
    return first, later, split, offload.bytes_moved


def _sum_to_learn_from(model: GroupModel, batch: PackedBatch) -> Tensor:
    """The sum of what a loss reads: it knows a few numbers a response or token, and may decide by their values."""
    if isinstance(model, ActorCritic):
        return torch.stack([values.sum() for values in model.trained_values(batch).values()]).sum()
    outputs = model(batch, mode="outputs")
    # A policy's come with those of its reference, which has run before it.
    return (outputs[0] if isinstance(outputs, tuple) else outputs).sum()


def _offload_of(counter: LiveBytes) -> Any:
    """Activations that leave the device, where the device is but a name."""

    class Offload(HostActivations):
        bytes_moved = 0

        def leaves_device(self, tensor: Tensor) -> bool:
            return True

        def to_host(self, tensor: Tensor) -> Tensor:
            Offload.bytes_moved += tensor.numel() * tensor.element_size()
            with counter.paused():
                return torch.empty_like(tensor)

        def to_device(self, host: Tensor, device: torch.device) -> Tensor:
            return host.clone()

    return Offload


def _watch_update(model: GroupModel, optim_wrapper: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of the optimizer's state, and what an update holds for a moment."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = build_optim_wrapper(model, optim_wrapper).optimizer
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    counter = LiveBytes(tensor for weight in trained for tensor in (weight, weight.grad) if tensor is not None)
    try:
        with counter:
            optimizer.step()
            states = counter.live
            counter.reset_peak()
            optimizer.step()
    except Exception:
        # Optimizers with kernels of their own: as Adam, two numbers in float32 for each weight.
        logger.debug("the state of %s is a rule of thumb", type(optimizer).__name__, exc_info=True)
        return sum(8 * weight.numel() for weight in trained), 0
    return states, counter.peak.total - states


def _rule_of_thumb(model: GroupModel, batch: PackedBatch, sizes: Sizes) -> tuple[Peak, Peak, Peak]:
    """About 10 vectors of the hidden and 3 of the intermediate size a token and layer, as a gated layer keeps.

    One hidden vector a layer and one whole layer under checkpointing. Of experts, those that a token is sent to. What a
    policy's output layer holds is known.
    """
    trained = [part for part in model.transformers_models() if part is not getattr(model, "reference", None)]
    activations = batch.num_tokens * sum(_kept_of_a_token(model, part) for part in trained)
    if model.hf_model.get_output_embeddings() is not None and batch.target_index is not None:
        activations += most_bytes_held(len(batch.target_index), len(embedding_weight(model.hf_model)))
    phase = "the backward pass"
    return (
        Peak(activations + sizes.trained, sizes.trained, phase),
        Peak(activations + sizes.trained, sizes.trained, phase),
        Peak(activations, 0, phase),
    )


def _kept_of_a_token(model: GroupModel, part: PreTrainedModel) -> int:
    """Bytes that a forward pass of one of the trained models keeps of a token, by the rule of thumb."""
    config = part.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    inner *= getattr(config, "num_experts_per_tok", None) or 1
    width = 4 if model.precision is torch.float32 else 2
    layer = (10 * hidden + 3 * inner) * width
    return int(layers * hidden * width + layer if model.gradient_checkpointing else layers * layer)
