"""The model card: what somebody who finds the weights has to know, as README.md beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
import transformers
from huggingface_hub import ModelCardData
from transformers import PreTrainedTokenizerBase

from xrlhf.devices import CpuDevice
from xrlhf.errors import UserError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export.directory import loading_call
from xrlhf.export.training_facts import TrainingFacts
from xrlhf.hub import is_hub_name
from xrlhf.models.quantised import is_quantised
from xrlhf.models.reward_model import RewardModel
from xrlhf.structures import Group, Message
from xrlhf.version import __version__

__all__ = ["CARD", "Example", "ModelCard", "example_of", "write_card"]

CARD = "README.md"

_TEMPLATE = "card.md.jinja"
_EXAMPLE: tuple[Message, Message] = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
)


@dataclass(frozen=True)
class Example:
    """A conversation with the score that training gave it, to tell whether a loader reads the model right.

    Args:
        messages: The conversation; None for a model of plain text.
        text: It as the model reads it.
        score: Raw, by the model as it was trained.
        dtype: Type that it was computed in.
    """

    messages: Sequence[Message] | None
    text: str
    score: float
    dtype: str


@dataclass(frozen=True)
class ModelCard:
    """What a card says beside what the directory itself tells.

    Args:
        kind: ``"reward"`` or ``"policy"``.
        base: The model it was made of, by a name that means something elsewhere; None if that is not known.
        facts: Of the run that trained it; None where there is none to be found.
        example: A conversation with its score, of a reward model.
    """

    kind: Literal["reward", "policy"]
    base: str | None = None
    facts: TrainingFacts | None = None
    example: Example | None = None


def example_of(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> Example | None:
    """A short conversation and its score by a model on the CPU.

    None where the model is elsewhere, or is quantised, so that the export has other weights, or where the chat template
    refuses the conversation.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or is_quantised(model.hf_model):
        return None
    prompt, answer = _EXAMPLE
    is_chat = tokenizer.chat_template is not None
    group = Group([prompt], ([answer],)) if is_chat else Group(prompt["content"] + "\n", (answer["content"],))
    was_training = model.training
    result = Scorer(model.eval(), tokenizer, CpuDevice()).score([group])[0]
    model.train(was_training)
    if not isinstance(result, list):
        return None
    dtype = str(weight.dtype if model.precision is torch.float32 else model.precision).removeprefix("torch.")
    if not is_chat:
        # The encoder ends plain text with EOS, where there is one.
        text = f"{prompt['content']}\n{answer['content']}{tokenizer.eos_token or ''}"
        return Example(None, text, result[0], dtype)
    return Example(_EXAMPLE, str(tokenizer.apply_chat_template(list(_EXAMPLE), tokenize=False)), result[0], dtype)


def write_card(folder: Path, name: str, card: ModelCard) -> None:
    """Write the card of an export into its folder.

    Args:
        folder: The export, with its configs.
        name: What the directory is going to be called.
        card: What to say.

    Raises:
        UserError: It cannot be written.
    """
    try:
        (folder / CARD).write_text(_rendered(folder, name, card), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder / CARD} cannot be written: {error}") from error


def _rendered(folder: Path, name: str, card: ModelCard) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _cell
    call = loading_call(folder, name)
    return environment.get_template(_TEMPLATE).render(
        header=_header(card, is_adapter=call.startswith("AutoPeft")),
        name=name,
        card=card,
        facts=card.facts,
        example=card.example,
        call=call,
        loader=call.partition(".")[0],
        versions={
            "xrlhf": __version__,
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    )


def _header(card: ModelCard, *, is_adapter: bool) -> str:
    """The card's metadata, as hubs read it."""
    is_reward = card.kind == "reward"
    data: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification" if is_reward else "text-generation",
        "tags": ["xrlhf", "reward-model" if is_reward else "rlhf"],
    }
    if card.base is not None and is_hub_name(card.base):
        data["base_model"] = card.base
    return ModelCardData(**data).to_yaml()


def _cell(value: Any) -> str:
    """A value in a table of Markdown."""
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return "".join(f"\\{mark}" if mark in "|`" else mark for mark in " ".join(text.split()))
