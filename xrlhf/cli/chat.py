"""``xrlhf chat``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from xrlhf.cli.options import DeviceName, Dtype
from xrlhf.cli.policy import (
    Greedy,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    policy_tokenizer,
    show_progress_to_terminals_alone,
)
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from xrlhf.cli.conversation import Respondent
    from xrlhf.structures import Message

__all__ = ["chat"]


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A language model: a directory or a hub name.")],
    system: Annotated[Optional[str], typer.Option(metavar="TEXT", help="A system text to begin with.")] = None,
    prompt: Annotated[
        Optional[str], typer.Option(metavar="TEXT", help="One question: print the answer and leave.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    greedy: Greedy = False,
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
    show_progress_to_terminals_alone()
    chosen = find_device(device)
    chosen.set_device(0)
    tokenizer = policy_tokenizer(model, adapter, chat_template)
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


def _edit_lines() -> None:
    """Let lines be edited and called back with the arrow keys, where Python was built with that."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401
