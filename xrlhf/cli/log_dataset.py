"""``xrlhf log-dataset``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Annotated

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, Overrides, read_recipe

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

__all__ = ["log_dataset"]


def log_dataset(
    config: ConfigName,
    overrides: Overrides = None,
    cfg_options: CfgOptions = None,
    index: Annotated[int, typer.Option(help="Which group, counted from 0.")] = 0,
    section: Annotated[str, typer.Option(help="train_dataloader or val_dataloader.")] = "train_dataloader",
    ids: Annotated[bool, typer.Option("--ids", help="Show every token with its id, one a line.")] = False,
) -> None:
    """Show one group as the model sees it, token by token.

    Prompt and responses are shown apart. Of data for a reward model the last token of each response, where the score
    is read, is marked; of data for a policy every token that it learns to write.

    Example: xrlhf log-dataset tiny_reward_cpu --index 3
    """
    recipe = read_recipe(config, cfg_options, overrides)
    from xrlhf.engine.build import build_dataset, build_tokenizer
    from xrlhf.errors import DataError

    tokenizer = build_tokenizer(recipe)
    dataset = build_dataset(recipe, section, tokenizer)
    if not 0 <= index < len(dataset):
        raise DataError(f"--index {index}: {section} has groups 0 to {len(dataset) - 1}")
    group = dataset[index]
    typer.echo(f"{dataset.where(index)}: {group.num_tokens} tokens to compute")
    pieces = [("prompt (computed once)", group.prompt_ids)]
    for k, response in enumerate(group.response_ids):
        rating = "" if group.ratings is None else f", rating {group.ratings[k]:g}"
        if group.attributes is not None:
            named = zip(dataset.encoder.attributes, group.attributes[k], strict=True)
            rating += "".join(f", {name} {value:g}" for name, value in named)
        rank = "best" if k == 0 else f"rank {k + 1}"
        pieces.append((f"response {k + 1} ({rank}{rating})", response))
    is_target = group.is_target
    masks = [None] * len(pieces) if is_target is None else _split(is_target, [len(tokens) for _, tokens in pieces])
    for number, ((title, tokens), mask) in enumerate(zip(pieces, masks, strict=True)):
        learnt = "" if mask is None else f", {int(mask.sum())} of them learnt"
        typer.secho(f"--- {title}: {len(tokens)} tokens{learnt}", bold=True)
        if not ids:
            for text, is_learnt in _runs(tokenizer, tokens, mask):
                typer.secho(text, nl=False, fg="green" if is_learnt else None)
            typer.echo()
            continue
        start = 0 if number == 0 else len(group.prompt_ids)
        for offset, token in enumerate(tokens.tolist()):
            is_scored = mask is None and number > 0 and offset == len(tokens) - 1
            mark = "  <- scored here" if is_scored else "  <- learnt" if mask is not None and mask[offset] else ""
            typer.echo(f"{start + offset:6d} {token:8d} {tokenizer.decode([token])!r}{mark}")


def _split(values: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    ends = list(accumulate(lengths))
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _runs(
    tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray, mask: np.ndarray | None
) -> Iterator[tuple[str, bool]]:
    """The text of the tokens, parted where learnt ones and others meet."""
    if mask is None:
        yield str(tokenizer.decode(tokens.tolist())), False
        return
    for is_learnt, places in groupby(range(len(tokens)), key=lambda place: bool(mask[place])):
        yield str(tokenizer.decode(tokens[list(places)].tolist())), is_learnt
