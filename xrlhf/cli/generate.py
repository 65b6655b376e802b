"""``xrlhf generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from xrlhf.cli.options import DeviceName, Dtype, FormatName, FormatOptions, map_fn_of
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
    from transformers import PreTrainedTokenizerBase

    from xrlhf.devices import Device
    from xrlhf.rl.answer_rows import AnswerRows
    from xrlhf.rl.samples import Rollouts

__all__ = ["generate"]


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A language model: a directory or a hub name.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write; the same call again goes on with it.")],
    prompts: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="JSON Lines (or JSON, gzip, Parquet) with prompts.")
    ] = None,
    rejected_for: Annotated[
        Optional[str],
        typer.Option(
            metavar="FILE", help="In place of --prompts: prompts with answers, which are chosen over the model's."
        ),
    ] = None,
    rank_by: Annotated[
        Optional[str], typer.Option(metavar="REWARD_MODEL", help="A reward model that ranks the answers, best first.")
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="With --rank-by: the best and the worst answer, not all of them.")
    ] = False,
    k: Annotated[int, typer.Option("--k", min=1, help="Answers to each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    greedy: Greedy = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other answers.")] = 0,
    format_name: FormatName = None,
    format_options: FormatOptions = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Go on with texts as they stand, without roles and chat template.")
    ] = False,
    max_prompt_tokens: Annotated[
        Optional[int], typer.Option(min=1, help="Longer prompts are refused; the model's own limit if not given.")
    ] = None,
    max_prompts: Annotated[Optional[int], typer.Option(min=1, help="Take the first so many prompts.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count prompts that cannot be read or are too long.")
    ] = False,
    batch_prompts: Annotated[int, typer.Option(min=1, help="Prompts that are answered and written together.")] = 64,
    adapter: Annotated[
        Optional[str], typer.Option(metavar="DIR", help="A LoRA adapter to merge into the model in memory.")
    ] = None,
    chat_template: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="In place of the tokenizer's own: chatml, or a file with Jinja."),
    ] = None,
    server: Annotated[
        Optional[list[str]],
        typer.Option(metavar="URL", help="A vLLM server that holds MODEL; may be given repeatedly."),
    ] = None,
    server_model: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="What the servers call the model; MODEL if not given.")
    ] = None,
    dtype: Dtype = "float32",
    device: DeviceName = None,
) -> None:
    """Answer the prompts of a file.

    A row of prompts may hold a prompt (text or messages), messages, conversations, an instruction, a question, or
    text; with --format, whatever that format has. Rows that are there already are kept: the same call again goes on
    behind them.

    Examples:

      xrlhf generate my_policy --prompts questions.jsonl --k 4 --out answers.jsonl

      xrlhf generate weak_model --rejected-for strong_answers.jsonl --out pairs.jsonl

      xrlhf generate my_policy --prompts questions.jsonl --k 8 --rank-by my_reward_model --out ranked.jsonl
    """
    _check(prompts, rejected_for, rank_by, pairs, k, greedy, server, server_model, adapter)
    from xrlhf.data.sources import open_source
    from xrlhf.devices import find_device
    from xrlhf.models.generation import Sampling
    from xrlhf.rl.generate_file import generate_file
    from xrlhf.rl.prompts import PromptEncoder

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
    map_fn = map_fn_of(format_name, format_options)
    data = prompts or rejected_for
    assert data is not None
    source = open_source(data)
    show_progress_to_terminals_alone()
    tokenizer = policy_tokenizer(model, adapter, chat_template, needs_template=not plain)
    chosen = find_device(device)
    chosen.set_device(0)
    if server:
        rollouts, limit = _servers(server, server_model or model, model, tokenizer, options), None
    else:
        rollouts, limit = _in_process(model, adapter, tokenizer, options, chosen, dtype)
    summary = generate_file(
        rollouts,
        PromptEncoder(tokenizer, max_length=_smaller(max_prompt_tokens, limit)),
        source,
        out,
        _rows(rejected_for, rank_by, pairs, k, chosen, dtype),
        k=k,
        seed=seed,
        settings={
            "model": model,
            "adapter": adapter,
            "chat_template": chat_template,
            "prompts": source.fingerprint(),
            "format": [format_name, *(format_options or [])],
            "plain": plain,
            "rejected_for": rejected_for is not None,
            "rank_by": rank_by,
            "pairs": pairs,
            "sampling": options,
        },
        map_fn=map_fn,
        plain=plain,
        skip_bad=skip_bad,
        max_prompts=max_prompts,
        batch_prompts=batch_prompts,
    )
    typer.echo(
        f"wrote {out}: {summary.num_before + summary.num_written} rows"
        + (f", {summary.num_before} of them before" if summary.num_before else "")
    )
    if summary.left_out:
        counts = ", ".join(f"{count} ({reason})" for reason, count in summary.left_out.most_common())
        typer.echo(f"prompts left out: {counts}; the first is {summary.first_left_out}")


def _check(
    prompts: str | None,
    rejected_for: str | None,
    rank_by: str | None,
    pairs: bool,
    k: int,
    greedy: bool,
    server: list[str] | None,
    server_model: str | None,
    adapter: str | None,
) -> None:
    """Refuse options that do not go together, before anything is read."""
    if (prompts is None) == (rejected_for is None):
        found = "neither is given" if prompts is None else "both are given"
        raise ConfigError(f"prompts come from --prompts or from --rejected-for, and {found}")
    if rejected_for is not None and rank_by is not None:
        raise ConfigError("--rejected-for has its chosen answers from the file: leave --rank-by out")
    if rejected_for is not None and k > 1:
        raise ConfigError(f"--rejected-for takes one answer to each prompt, got --k {k}")
    if rank_by is not None and k < 2:
        raise ConfigError("--rank-by needs two or more answers to each prompt: give --k")
    if pairs and rank_by is None:
        raise ConfigError("--pairs needs a reward model: name it with --rank-by")
    if greedy and k > 1:
        raise ConfigError(f"{k} greedy answers would all be the same: leave --greedy out, or ask for one")
    if server_model is not None and not server:
        raise ConfigError("--server-model needs a server: name it with --server")
    if server and adapter is not None:
        raise ConfigError("--adapter is merged in this process: with --server, name what the server calls it")


def _in_process(
    model: str,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
    device: Device,
    dtype: str,
) -> tuple[Rollouts, int | None]:
    """What draws here, and the most tokens of a prompt."""
    from xrlhf.models.causal_lm import causal_lm_from_pretrained, causal_lm_with_adapter
    from xrlhf.models.generation import Sampling
    from xrlhf.rl.rollouts import ModelRollouts

    if adapter is None:
        policy = causal_lm_from_pretrained(model, dtype=dtype)
    else:
        policy = causal_lm_with_adapter(model, adapter, dtype=dtype)
    policy.to(device.torch_device)
    rollouts = ModelRollouts(policy, tokenizer, device=device, sampling=Sampling.suggested_by(policy, **options))
    return rollouts, None if rollouts.max_length is None else rollouts.max_length - 1


def _servers(
    urls: list[str], served: str, model: str, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> Rollouts:
    from xrlhf.models.generation import Sampling
    from xrlhf.rl.rollouts import VllmRollouts

    given = {name: value for name, value in options.items() if value is not None}
    return VllmRollouts(urls, served, tokenizer, sampling=Sampling.suggested_by(_suggestions(model), **given))


def _suggestions(model: str) -> Any:
    """What stands for a model that is elsewhere: its ``generation_config.json``, where it has one."""
    from types import SimpleNamespace

    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(model)
    except OSError:
        config = GenerationConfig()
    return SimpleNamespace(generation_config=config)


def _rows(rejected_for: str | None, rank_by: str | None, pairs: bool, k: int, device: Device, dtype: str) -> AnswerRows:
    from xrlhf.rl.answer_rows import Answers, RankedAnswers, RejectedAnswers
    from xrlhf.rl.rewards import RewardModelReward

    if rejected_for is not None:
        return RejectedAnswers()
    if rank_by is not None:
        return RankedAnswers(RewardModelReward(rank_by, device=device, dtype=dtype), pairs=pairs)
    return Answers(k)


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)
