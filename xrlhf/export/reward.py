"""Reward models as Hugging Face directories that every loader of the field scores alike."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from mmengine.config import Config
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.engine.build import build_model, build_tokenizer
from xrlhf.engine.checkpoint import load_checkpoint, load_strictly
from xrlhf.errors import ConfigError, ModelError
from xrlhf.export.card import ModelCard, example_of
from xrlhf.export.directory import check_new_directory
from xrlhf.export.internlm2 import complete_internlm2, with_architecture
from xrlhf.export.model_files import merged_model, state_in, written_model
from xrlhf.export.policy import write_policy
from xrlhf.export.training_facts import training_facts
from xrlhf.models.heads import AttributeHead, Head, describe_head
from xrlhf.models.internlm2 import InternLM2ForRewardModel
from xrlhf.models.loading import score_head, torch_dtype
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.reward_model import RewardModel

__all__ = ["card_of_run", "export_checkpoint", "save_reward_model", "trained_model", "write_reward_model"]

logger = logging.getLogger("xrlhf")


def export_checkpoint(
    recipe: Config,
    checkpoint: Path,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    keep_attributes: bool = False,
    architecture: str | None = None,
) -> None:
    """Convert a checkpoint to a Hugging Face directory, adapters merged.

    Args:
        recipe: The recipe it was trained with.
        checkpoint: An ``iter_N.pth``, or the folder ``iter_N`` of a sharded one.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.
        keep_attributes: As in :func:`save_reward_model`.
        architecture: As in :func:`xrlhf.export.internlm2.with_architecture`.

    Raises:
        CheckpointError: The checkpoint is damaged or of another architecture.
        UserError: ``out`` is not empty.
    """
    torch_dtype(dtype)
    check_new_directory(out)
    model, tokenizer = trained_model(recipe, checkpoint)
    if isinstance(model, PolicyModel):
        if keep_attributes:
            raise ConfigError("the recipe trains a policy: leave --keep-attributes out")
        policy = with_architecture(merged_model(model), architecture)
        card = card_of_run(recipe, checkpoint, model, tokenizer)
        write_policy(policy, tokenizer, out, dtype=dtype, max_shard_size=max_shard_size, card=card)
        return
    kept = _head_to_keep(model.head, keep_attributes)
    # The example is scored before merging uses the model up.
    card = card_of_run(recipe, checkpoint, model, tokenizer)
    written = with_architecture(merged_model(model), architecture)
    sizes = {"dtype": dtype, "max_shard_size": max_shard_size}
    write_reward_model(written, tokenizer, out, **sizes, head=model.head, kept=kept, card=card)


def card_of_run(
    recipe: Config, checkpoint: Path, model: RewardModel | PolicyModel, tokenizer: PreTrainedTokenizerBase
) -> ModelCard:
    """The card of a model that a recipe has trained."""
    facts = training_facts(recipe, checkpoint)
    if isinstance(model, PolicyModel):
        return ModelCard("policy", facts.base, facts)
    return ModelCard("reward", facts.base, facts, example_of(model, tokenizer))


def trained_model(recipe: Config, checkpoint: Path) -> tuple[RewardModel | PolicyModel, PreTrainedTokenizerBase]:
    """The model of a recipe with the weights of a checkpoint, and its tokenizer.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of another architecture.
        ModelError: The recipe's model is neither a reward model nor a policy.
    """
    state = load_checkpoint(checkpoint)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    if not isinstance(model, (RewardModel, PolicyModel)):
        raise ModelError(
            f"the recipe's model is a {type(model).__name__}: reward models and policies convert, others do not"
        )
    load_strictly(model, state["state_dict"], model.checkpoint_names(), str(checkpoint))
    return model, tokenizer


def save_reward_model(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    keep_attributes: bool = False,
    architecture: str | None = None,
) -> None:
    """Write a reward model and its tokenizer into ``out``, which appears only when it is complete.

    ``config.json`` says ``num_labels`` 1 and ``problem_type`` regression (so that pipelines and servers return raw
    scores) and names a pad token that is not the end token; keys that older readers look for stand beside the new
    ones. The chat template is inside ``tokenizer_config.json``. The model can be trained on afterwards: its weights,
    adapters and attention stay as they are.

    Args:
        model: The reward model; adapters are merged in a copy, so one with adapters is held twice for a while.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.
        keep_attributes: Of a model with an attribute head, write one label for each attribute, and their weights in
            the same order as ``attribute_weights`` into ``config.json``: :class:`~xrlhf.evaluation.scorer.Scorer` then
            gives the same score, and other tools the attributes. By default the weights are folded into a layer with
            one label, which every tool reads as the score.
        architecture: As in :func:`xrlhf.export.internlm2.with_architecture`.

    Raises:
        ModelError: The tokenizer has no pad token of its own, the model's adapters cannot be merged, or it has no
            attributes to keep.
        UserError: ``out`` is not empty or cannot be written.
    """
    check_new_directory(out)
    kept = _head_to_keep(model.head, keep_attributes)
    card = ModelCard("reward", example=example_of(model, tokenizer))
    merged = merged_model(copy.deepcopy(model)) if model.uses_lora else model.hf_model
    written = with_architecture(merged, architecture)
    sizes = {"dtype": dtype, "max_shard_size": max_shard_size}
    write_reward_model(written, tokenizer, out, **sizes, head=model.head, kept=kept, card=card)


def _head_to_keep(head: Head, keep_attributes: bool) -> AttributeHead | None:
    """The head that the export describes; None where it gives one score."""
    if not keep_attributes:
        return None
    if not isinstance(head, AttributeHead):
        raise ModelError("the model gives one score and has no attributes to keep: leave keep_attributes out")
    return head


def _fold(state: dict[str, Tensor], model: PreTrainedModel, head: AttributeHead) -> None:
    """Put the weights of the attributes into the score layer of a state."""
    name, layer = score_head(model, head.num_outputs)
    weight, bias = head.folded(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
    state[f"{name}.weight"] = weight
    if bias is not None:
        state[f"{name}.bias"] = bias


def write_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str,
    max_shard_size: str,
    card: ModelCard,
    head: Head | None = None,
    kept: AttributeHead | None = None,
) -> None:
    """Write a plain ``...ForSequenceClassification`` model as :func:`save_reward_model` does.

    Args:
        model: The model, without adapters.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.
        card: What the card says beside what the directory tells.
        head: What its score layer gives; one score if None.
        kept: The head to describe in ``config.json``; None folds the attributes of ``head`` into one score.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError("the tokenizer needs a pad token that is not its end token: see prepare_tokenizer")
    config = model.config
    describe_head(config, kept)
    config.problem_type = "regression"
    config.pad_token_id = tokenizer.pad_token_id
    held = dict(model.state_dict())
    if isinstance(head, AttributeHead) and kept is None:
        _fold(held, model, head)
    state = state_in(dtype, held)
    with written_model(model, tokenizer, out, state, dtype=dtype, max_shard_size=max_shard_size, card=card) as aside:
        if isinstance(model, InternLM2ForRewardModel):
            complete_internlm2(aside, tokenizer)
