"""``xrlhf log-dataset``."""

from __future__ import annotations

from typing import Annotated

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, Overrides, read_recipe

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

    Prompt and responses are shown apart; the last token of each response, where the score is read, is marked.

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
    for number, (title, tokens) in enumerate(pieces):
        typer.secho(f"--- {title}: {len(tokens)} tokens", bold=True)
        if not ids:
            typer.echo(tokenizer.decode(tokens.tolist()))
            continue
        start = 0 if number == 0 else len(group.prompt_ids)
        for offset, token in enumerate(tokens.tolist()):
            scored = "  <- scored here" if number and offset == len(tokens) - 1 else ""
            typer.echo(f"{start + offset:6d} {token:8d} {tokenizer.decode([token])!r}{scored}")
