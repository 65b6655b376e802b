"""``xrlhf check-dataset``."""

from __future__ import annotations

from typing import Annotated

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, Overrides, read_recipe

__all__ = ["check_dataset"]


def check_dataset(
    config: ConfigName,
    overrides: Overrides = None,
    cfg_options: CfgOptions = None,
    examples: Annotated[int, typer.Option(help="Rows named for each reason.")] = 5,
) -> None:
    """Read a recipe's data and say what is wrong with it: counts by reason, with file and line.

    Example: xrlhf check-dataset my_recipe.py
    """
    recipe = read_recipe(config, cfg_options, overrides)
    from xrlhf.engine.build import build_dataset, build_tokenizer

    tokenizer = build_tokenizer(recipe)
    for section in ("train_dataloader", "val_dataloader"):
        if not recipe.get(section):
            continue
        dataset = build_dataset(recipe, section, tokenizer)
        typer.echo(f"{section}: {len(dataset):,} groups")
        for line in dataset.report_lines():
            typer.echo(f"  {line}")
        for table in dataset.tables:
            for reason in table.report.reasons:
                named = [e for e in table.report.examples if e.reason.value == reason][:examples]
                for example in named:
                    typer.echo(f"    {example.location}: [{reason}] {example.detail}")
