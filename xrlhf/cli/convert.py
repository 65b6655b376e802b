"""``xrlhf convert``: checkpoints to directories that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, Overrides, read_recipe

__all__ = ["convert"]

convert = typer.Typer(help="Convert checkpoints.", no_args_is_help=True)


@convert.callback()
def _convert() -> None:
    """Convert checkpoints."""


@convert.command("pth_to_hf")
def pth_to_hf(
    config: ConfigName,
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Such as work_dirs/NAME/iter_500.pth.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to make; it must not exist, or be empty.")],
    dtype: Annotated[str, typer.Option(help="Type of the saved weights: float32, bfloat16 or float16.")] = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Largest weights file.")] = "5GB",
    keep_attributes: Annotated[
        bool, typer.Option("--keep-attributes", help="One label for each attribute in place of their weighted sum.")
    ] = False,
    architecture: Annotated[
        Optional[str],
        typer.Option(
            metavar="CLASS",
            help="For InternLM2: LlamaForSequenceClassification, which loaders know, in place of its own class.",
        ),
    ] = None,
    overrides: Overrides = None,
    cfg_options: CfgOptions = None,
) -> None:
    """Convert a checkpoint to a Hugging Face directory.

    Example: xrlhf convert pth_to_hf tiny_reward_cpu work_dirs/tiny_reward_cpu/iter_1000.pth reward_hf
    """
    recipe = read_recipe(config, cfg_options, overrides)
    from xrlhf.export import export_checkpoint
    from xrlhf.export.directory import loading_call

    export_checkpoint(
        recipe,
        checkpoint,
        out,
        dtype=dtype,
        max_shard_size=max_shard_size,
        keep_attributes=keep_attributes,
        architecture=architecture,
    )
    typer.echo(f"wrote {out}: load it with {loading_call(out)}")
