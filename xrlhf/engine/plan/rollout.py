"""What a rollout takes before its steps: drawing answers, looking at their tokens, rewarding them."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from xrlhf.config.resolve import find_component
from xrlhf.engine.plan.live_bytes import LiveBytes
from xrlhf.engine.plan.step import sizes_of
from xrlhf.engine.plan.strategies import DevicePlan, Moment
from xrlhf.engine.plan.workload import RolloutShape
from xrlhf.errors import UserError, error_line
from xrlhf.models.actor_critic import ActorCritic
from xrlhf.models.flops import matrix_flops
from xrlhf.models.group_model import GroupModel
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.shapes import batch_on_paper, paper_mode, put_on_paper, shapes_alone
from xrlhf.registry import MODELS
from xrlhf.rl.rewards import RewardModelReward
from xrlhf.rl.rollouts import ModelRollouts
from xrlhf.rl.rollouts.cache import bytes_per_token, growing_cache
from xrlhf.rl.rollouts.drawing import draw
from xrlhf.rl.rollouts.model import default_batch_tokens, next_logits, sampling_of
from xrlhf.structures import PackedBatch

__all__ = ["DRAWING", "REWARDING", "RolloutNeeds", "answers_at_once", "rollout_needs", "with_rollout"]

logger = logging.getLogger("xrlhf")

DRAWING, REWARDING = "drawing answers", "rewarding answers"
"""The moments that a rollout has beside those of its steps."""

_HOST = torch.device("cpu")
_UNTRAINED = ("loss", "value_loss", "critic", "critic_lora", "reference", "reference_device")


@dataclass(frozen=True)
class RolloutNeeds:
    """A rollout on one device, in bytes and FLOPs, where nothing is split.

    Args:
        policy: Weights that answers are drawn from.
        drawing: The most that drawing holds beside them: the cache, the logits, what a token computes; 0 where servers
            draw.
        beside: Weights of reward models that stay on the device.
        rewarding: The most that scoring answers holds beside those.
        on_host: Weights of reward models that stay in the memory of the host.
        at_once: Answers that are drawn at once; 0 where servers draw.
        draw_flops: What drawing computes.
        judge_flops: What policy, reference and critic compute to look at the tokens that were drawn.
        reward_flops: What the reward models compute.
        notes: What could not be counted, a line each.
    """

    policy: int
    drawing: int
    beside: int
    rewarding: int
    on_host: int
    at_once: int
    draw_flops: float
    judge_flops: float
    reward_flops: float
    notes: tuple[str, ...] = ()


def rollout_needs(
    recipe: Config,
    section: Mapping[str, Any],
    shape: RolloutShape,
    *,
    judge_flops: float,
    on_cpu: bool,
    memory: float | None,
) -> RolloutNeeds:
    """Watch a rollout of a recipe on shapes alone.

    Args:
        recipe: The recipe.
        section: Its ``model``, with the tokenizer, as it is built by its shapes.
        shape: What a device has of a rollout.
        judge_flops: What looking at all tokens of a device computes.
        on_cpu: Whether the devices are processors.
        memory: Bytes that a device holds; None where nobody said.

    Raises:
        UserError: The model cannot be built.
    """
    kind = _kind_of(recipe["rollouts"])
    policy = drawing = at_once = 0
    draw_flops = 0.0
    notes: list[str] = []
    if isinstance(kind, type) and issubclass(kind, ModelRollouts):
        with shapes_alone():
            model = MODELS.build({**{k: v for k, v in section.items() if k not in _UNTRAINED}, "reference": None})
        policy = sum(of.numel() * of.element_size() for of in (*model.hf_model.parameters(), *model.hf_model.buffers()))
        own = recipe["rollouts"]
        per_token = bytes_per_token(model.hf_model.config, model.hf_model.dtype)
        at_once = answers_at_once(own.get("max_batch_tokens"), per_token, shape, memory=memory, on_cpu=on_cpu)
        draw_flops = forward_flops(model.hf_model, shape)
        try:
            drawing = _watch_drawing(model, shape, at_once, sampling_of(own.get("sampling")))
        except UserError:
            raise
        except Exception as error:
            logger.debug("drawing falls back to a rule of thumb", exc_info=True)
            notes.append(
                f"what drawing computes with is left out: {type(model.hf_model).__name__} does not write on shapes "
                f"alone ({error_line(error, 120)})"
            )
            drawing = at_once * (shape.longest_prompt + shape.new_tokens) * per_token
    beside = on_host = rewarding = 0
    reward_flops = 0.0
    for spec in recipe.get("rewards") or ():
        if not (isinstance(spec, Mapping) and _is_reward_model(spec)):
            continue
        try:
            weights, working, flops = _reward_model(spec, shape)
        except UserError as error:
            notes.append(f"the reward model {spec.get('path')} is left out: {error_line(error, 200)}")
            continue
        reward_flops += flops
        if spec.get("device") == "cpu" and not on_cpu:
            on_host += weights
        else:
            beside, rewarding = beside + weights, max(rewarding, working)
    return RolloutNeeds(
        policy, drawing, beside, rewarding, on_host, at_once, draw_flops, judge_flops, reward_flops, tuple(notes)
    )


def with_rollout(plan: DevicePlan, needs: RolloutNeeds) -> DevicePlan:
    """The plan of a strategy with what a rollout adds: moments of its own, and models that stay beside the trained one.

    Args:
        plan: Of the steps.
        needs: Of a rollout.
    """
    moments = tuple(replace(moment, weights=moment.weights + needs.beside) for moment in plan.moments)
    rest = replace(plan.resting, weights=plan.resting.weights + needs.beside)
    # Where weights are split, those that answers are drawn from are put together meanwhile.
    whole = needs.policy if plan.splits_weights and needs.at_once else 0
    of_rollout = [
        replace(rest, name=DRAWING, activations=needs.drawing, buffers=rest.buffers + whole),
        replace(rest, name=REWARDING, activations=needs.rewarding),
    ]
    more: tuple[Moment, ...] = tuple(moment for moment in of_rollout if moment.activations)
    return replace(plan, moments=moments + more, resting=rest, host=plan.host + needs.on_host)


def answers_at_once(
    max_batch_tokens: int | None, per_token: int, shape: RolloutShape, *, memory: float | None, on_cpu: bool
) -> int:
    """How many answers :class:`~xrlhf.rl.rollouts.ModelRollouts` draws at once; all of a device where nobody says how
    much it holds.

    Args:
        max_batch_tokens: The option of that name.
        per_token: Bytes that its cache keeps of a token.
        shape: What a device has of a rollout.
        memory: Bytes that a device holds.
        on_cpu: Whether it is a processor.
    """
    answers = shape.prompts * shape.num_answers
    if max_batch_tokens is None:
        if memory is None and not on_cpu:
            return answers
        max_batch_tokens = default_batch_tokens(memory, per_token, on_cpu=on_cpu)
    return max(1, min(answers, max_batch_tokens // (shape.longest_prompt + shape.new_tokens)))


def forward_flops(model: PreTrainedModel, shape: RolloutShape) -> float:
    """FLOPs of one forward pass over all tokens that a device has of a rollout, of a language model with its output
    layer."""
    batch = shape.group_batch()
    targets = shape.num_answers * shape.new_tokens
    output = model.get_output_embeddings()
    of_output = 2.0 * output.weight.numel() * targets if isinstance(output, nn.Linear) else 0.0
    return shape.prompts * (matrix_flops(model, forward_only=True).of(batch.segments, targets) + of_output)


def _kind_of(spec: Mapping[str, Any]) -> Any:
    kind = spec.get("type")
    return find_component(kind) if isinstance(kind, str) else kind


def _is_reward_model(spec: Mapping[str, Any]) -> bool:
    kind = _kind_of(spec)
    return isinstance(kind, type) and issubclass(kind, RewardModelReward)


def _last_growth(config: PreTrainedConfig, shape: RolloutShape) -> int:
    """How many tokens a cache has when its memory grows for the last time; 0 where it does not grow."""
    layer: Any = growing_cache(config).layers[0]
    first, one = torch.zeros(1, 1, shape.longest_prompt, 1), torch.zeros(1, 1, 1, 1)
    layer.update(first, first)
    layer.reorder_cache(torch.zeros(1, dtype=torch.long))
    found = 0
    held = layer.keys
    for length in range(shape.longest_prompt + 1, shape.longest_prompt + shape.new_tokens):
        layer.update(one, one)
        if layer.keys is not held:
            found, held = length, layer.keys
    return found


def _watch_drawing(model: ActorCritic, shape: RolloutShape, rows: int, sampling: Any) -> int:
    """The most bytes that drawing so many answers at once holds beside the weights."""
    config = model.hf_model.config
    grows_at = _last_growth(config, shape)
    prompts = math.ceil(rows / shape.num_answers)
    mode = paper_mode()
    put_on_paper(model, mode)
    counter = LiveBytes([*model.parameters(), *model.buffers()])
    with mode, torch.no_grad(), model.computing(_HOST), model.generating() as writer, counter:
        of_prompt = torch.zeros(rows, dtype=torch.long)
        # Tokens, log-probabilities and random numbers of all answers, which stay.
        kept = [
            torch.zeros(rows, shape.new_tokens, dtype=dtype) for dtype in (torch.long, torch.float32, torch.float32)
        ]

        def token(cache: Any, count: int, tokens: int) -> None:
            logits = _logits(writer, cache, count, tokens)
            if count < rows:
                cache.reorder_cache(of_prompt)
                logits = logits[of_prompt]
            draw(logits, kept[-1][:, 0], sampling)

        cache = growing_cache(config)
        token(cache, prompts, shape.longest_prompt)
        if grows_at:
            most = counter.peak.total
            # The memory of the whole run is that of its last growth.
            cache = growing_cache(config)
            _logits(writer, cache, rows, grows_at - 1)
            counter.reset_peak()
            token(cache, rows, 1)
            return max(most, counter.peak.total)
        token(cache, rows, 1)
        return counter.peak.total


def _logits(model: PreTrainedModel, cache: Any, rows: int, tokens: int) -> Tensor:
    """(rows, V), behind so many more tokens than the cache has."""
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    mask = torch.ones(rows, int(cache.get_seq_length()) + tokens, dtype=torch.long)
    return next_logits(model, cache, ids, mask, torch.zeros_like(ids))


def _reward_model(spec: Mapping[str, Any], shape: RolloutShape) -> tuple[int, int, float]:
    """Bytes of the weights of a reward model, the most that scoring holds beside them, and FLOPs of all answers.

    Its tokenizer is taken for the policy's: so many tokens, nearly.
    """
    options = {name: spec[name] for name in ("path", "dtype", "trust_remote_code") if name in spec}
    with shapes_alone():
        model = RewardModel({"type": backbone_from_pretrained, **options})
    sizes = sizes_of(model)
    group = shape.group_tokens
    default = inspect.signature(RewardModelReward).parameters["token_budget"].default
    many = max(1, min(shape.prompts, int(spec.get("token_budget", default)) // group))
    batch = shape.group_batch(many)
    flops = matrix_flops(model.hf_model, forward_only=True).of(batch.segments) * shape.prompts / many
    try:
        return sizes.weights, _watch_forward(model, batch, lambda paper: model(paper, mode="outputs")), flops
    except UserError:
        raise
    except Exception:
        logger.debug("what scoring computes with is left out", exc_info=True)
        return sizes.weights, 0, flops


def _watch_forward(model: GroupModel, batch: PackedBatch, run: Callable[[PackedBatch], Any]) -> int:
    """The most bytes of a forward pass without gradients."""
    mode = paper_mode()
    put_on_paper(model, mode)
    counter = LiveBytes([*model.parameters(), *model.buffers()])
    model.eval()
    with mode, torch.no_grad():
        on_paper = batch_on_paper(batch, mode)
        with counter:
            run(on_paper)
    return counter.peak.total
