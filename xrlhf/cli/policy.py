"""What the commands that let a language model write have in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Greedy",
    "RepetitionPenalty",
    "Temperature",
    "TopK",
    "TopP",
    "policy_tokenizer",
    "show_progress_to_terminals_alone",
]

_SUGGESTED = "the model's own if not given"

Temperature = Annotated[
    Optional[float], typer.Option(help=f"Below 1 likely tokens become likelier; {_SUGGESTED}.", show_default=False)
]
TopP = Annotated[
    Optional[float],
    typer.Option(help=f"Draw among the likeliest tokens of this probability; {_SUGGESTED}.", show_default=False),
]
TopK = Annotated[
    Optional[int],
    typer.Option(help=f"Draw among so many of the likeliest tokens, 0 for all; {_SUGGESTED}.", show_default=False),
]
RepetitionPenalty = Annotated[
    Optional[float], typer.Option(help=f"Above 1 makes repetitions rarer; {_SUGGESTED}.", show_default=False)
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token always.")]


def policy_tokenizer(
    model: str, adapter: str | None, chat_template: str | None, *, needs_template: bool = True
) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer and template where it has them, else the model's, with the template that is asked for.

    Args:
        model: A directory or a hub name.
        adapter: A LoRA adapter, or None.
        chat_template: Name or file of a template in the place of its own, or None.
        needs_template: Whether a tokenizer without any is refused.

    Raises:
        ModelError: No tokenizer, or none with a template.
    """
    from xrlhf.errors import ModelError
    from xrlhf.models.adapters import tokenizer_location
    from xrlhf.models.tokenizer import read_tokenizer, set_chat_template

    if adapter is None:
        tokenizer = read_tokenizer(tokenizer_location(model))
    elif Path(adapter).expanduser().is_dir():
        tokenizer = read_tokenizer(tokenizer_location(adapter, model))
        own = Path(adapter).expanduser() / "chat_template.jinja"
        if own.is_file():
            set_chat_template(tokenizer, str(own))
    else:
        try:
            tokenizer = read_tokenizer(adapter)
        except ModelError:
            # Few adapters on a hub bring a tokenizer; what else is wrong with this one, loading it will say.
            tokenizer = read_tokenizer(tokenizer_location(model))
    if chat_template is not None:
        set_chat_template(tokenizer, chat_template)
    if needs_template and tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer of {model!r} has no chat template, as base models often have none: name a model that was "
            "trained to chat, or the template that it was trained with (--chat-template)"
        )
    return tokenizer


def show_progress_to_terminals_alone() -> None:
    """Keep the bars of loading out of files and pipes."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
