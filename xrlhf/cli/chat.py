"""``xrlhf chat``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from xrlhf.cli.options import DeviceName, Dtype
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from xrlhf.cli.conversation import Respondent
    from xrlhf.structures import Message

__all__ = ["chat"]

_SUGGESTED = "the model's own if not given"


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A language model: a directory or a hub name.")],
    system: Annotated[Optional[str], typer.Option(metavar="TEXT", help="A system text to begin with.")] = None,
    prompt: Annotated[
        Optional[str], typer.Option(metavar="TEXT", help="One question: print the answer and leave.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        Optional[float], typer.Option(help=f"Below 1 likely tokens become likelier; {_SUGGESTED}.", show_default=False)
    ] = None,
    top_p: Annotated[
        Optional[float],
        typer.Option(help=f"Draw among the likeliest tokens of this probability; {_SUGGESTED}.", show_default=False),
    ] = None,
    top_k: Annotated[
        Optional[int],
        typer.Option(help=f"Draw among so many of the likeliest tokens, 0 for all; {_SUGGESTED}.", show_default=False),
    ] = None,
    repetition_penalty: Annotated[
        Optional[float], typer.Option(help=f"Above 1 makes repetitions rarer; {_SUGGESTED}.", show_default=False)
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token always.")] = False,
    seed: Annotated[Optional[int], typer.Option(min=0, help="The same answers every time.")] = None,
    adapter: Annotated[
        Optional[str], typer.Option(metavar="DIR", help="A LoRA adapter to merge into the model in memory.")
    ] = None,
    chat_template: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="In place of the tokenizer's own: chatml, or a file with Jinja."),
    ] = None,
    reward: Annotated[
        Optional[str], typer.Option(metavar="REWARD_MODEL", help="A reward model that scores the answers.")
    ] = None,
    best_of: Annotated[
        int, typer.Option("--best-of", min=1, help="Sample so many answers and show the best; needs --reward.")
    ] = 1,
    scores: Annotated[bool, typer.Option("--scores", help="Show the scores of all answers; needs --reward.")] = False,
    dtype: Dtype = "float32",
    device: DeviceName = None,
) -> None:
    """Talk to a language model in the terminal; inside, /help lists what else can be done.

    With --prompt, or a question from a pipe, it answers once: the answer is all that goes to the output.

    Examples:

      xrlhf chat my_policy --system "You are terse."

      xrlhf chat my_policy --prompt "Name three rivers." --greedy

      xrlhf chat my_policy --reward my_reward_model --best-of 8 --scores
    """
    if reward is None and (best_of > 1 or scores):
        raise ConfigError(f"{'--best-of' if best_of > 1 else '--scores'} needs a reward model: name it with --reward")
    if best_of > 1 and greedy:
        raise ConfigError("--best-of needs answers that differ: leave --greedy out")
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise ConfigError("there is no question: give one with --prompt or through the pipe")
    from xrlhf.cli.conversation import Conversation, Respondent, TerminalChat
    from xrlhf.devices import find_device
    from xrlhf.evaluation.scorer import Scorer
    from xrlhf.models.causal_lm import causal_lm_from_pretrained, causal_lm_with_adapter
    from xrlhf.models.generation import Generator, Sampling

    options = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "greedy": greedy,
    }
    # A wrong value is said before a model is read.
    Sampling(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    _show_progress_to_terminals_alone()
    chosen = find_device(device)
    chosen.set_device(0)
    tokenizer = _tokenizer_of(model, adapter, chat_template)
    if adapter is None:
        policy = causal_lm_from_pretrained(model, dtype=dtype)
    else:
        policy = causal_lm_with_adapter(model, adapter, dtype=dtype)
    policy.to(chosen.torch_device)
    respondent = Respondent(
        Generator(policy, tokenizer),
        Sampling.suggested_by(policy, **options),
        chosen,
        num=best_of,
        scorer=None if reward is None else Scorer.from_pretrained(reward, device=chosen, dtype=dtype),
        seed=seed,
    )
    conversation = Conversation(system)
    if prompt is not None:
        _answer_once(respondent, conversation.ask(prompt.strip()), show_scores=scores)
        return
    _edit_lines()
    typer.echo(f"{model}: {type(policy).__name__} on {chosen.describe()}; /help lists the commands, Ctrl-D leaves")
    TerminalChat(respondent, conversation, show_scores=scores).run()


def _tokenizer_of(model: str, adapter: str | None, chat_template: str | None) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer and template where it has them, else the model's, with the template that is asked for."""
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
    if tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer of {model!r} has no chat template, as base models often have none: name a model that was "
            "trained to chat, or the template that it was trained with (--chat-template)"
        )
    return tokenizer


def _answer_once(respondent: Respondent, messages: list[Message], *, show_scores: bool) -> None:
    """Print the answer and nothing else on the output; what there is to say about it goes to the error stream."""
    from xrlhf.cli.conversation import notes_of, printable, score_lines

    to_terminal = sys.stdout.isatty()

    def show(text: str) -> None:
        sys.stdout.write(printable(text) if to_terminal else text)
        sys.stdout.flush()

    reply = respondent.reply(messages, show)
    sys.stdout.write("\n")
    sys.stdout.flush()
    if reply.ending == "interrupted":
        raise KeyboardInterrupt
    notes = notes_of(reply, respondent.sampling.max_new_tokens)
    for line in [*notes, *(score_lines(reply) if show_scores else [])]:
        typer.echo(line, err=True)


def _show_progress_to_terminals_alone() -> None:
    """Keep the bars of loading out of files and pipes."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _edit_lines() -> None:
    """Let lines be edited and called back with the arrow keys, where Python was built with that."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401
