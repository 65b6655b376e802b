"""``xrlhf convert``: checkpoints and adapters to directories that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, Overrides, read_recipe
from xrlhf.errors import ConfigError

__all__ = ["convert"]

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to make; it must not exist, or be empty.")]
Dtype = Annotated[str, typer.Option(help="Type of the saved weights: float32, bfloat16 or float16.")]
ShardSize = Annotated[str, typer.Option(help="Largest weights file.")]

convert = typer.Typer(help="Convert checkpoints, adapters and directories.", no_args_is_help=True)


@convert.callback()
def _convert() -> None:
    """Convert checkpoints, adapters and directories."""


@convert.command("pth_to_hf")
def pth_to_hf(
    config: ConfigName,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Such as work_dirs/NAME/iter_500.pth, or iter_500.")
    ],
    out: Out,
    dtype: Dtype = "float32",
    max_shard_size: ShardSize = "5GB",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapter with its head, without the base, for peft.")
    ] = False,
    keep_attributes: Annotated[
        bool, typer.Option("--keep-attributes", help="One label for each attribute in place of their weighted sum.")
    ] = False,
    architecture: Annotated[
        Optional[str],
        typer.Option(
            metavar="CLASS",
            help="For InternLM2: LlamaForSequenceClassification or, of a policy, LlamaForCausalLM, which loaders know.",
        ),
    ] = None,
    overrides: Overrides = None,
    cfg_options: CfgOptions = None,
) -> None:
    """Convert a checkpoint to a Hugging Face directory, adapters merged unless asked for by themselves.

    Example: xrlhf convert pth_to_hf tiny_reward_cpu work_dirs/tiny_reward_cpu/iter_1000.pth reward_hf
    """
    recipe = read_recipe(config, cfg_options, overrides)
    from xrlhf.export import export_adapter, export_checkpoint
    from xrlhf.export.directory import loading_call

    if adapter:
        if keep_attributes or architecture is not None:
            raise ConfigError("--adapter writes the adapter as it is: leave --keep-attributes and --architecture out")
        export_adapter(recipe, checkpoint, out, dtype=dtype)
    else:
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


@convert.command("merge")
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model under the adapter: a directory or hub name.")],
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A LoRA adapter; a reward model's has its head with it.")
    ],
    out: Out,
    dtype: Dtype = "float32",
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Merge a LoRA adapter, of a reward model or of a policy, into its base.

    Example: xrlhf convert merge base_model adapter_dir merged_hf
    """
    from xrlhf.export import merge_into_base
    from xrlhf.export.directory import loading_call

    merge_into_base(base, adapter, out, dtype=dtype, max_shard_size=max_shard_size)
    typer.echo(f"wrote {out}: load it with {loading_call(out)}")


@convert.command("split")
def split(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A Hugging Face directory.")],
    out: Out,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Copy a model directory with its weights in files of another size.

    Example: xrlhf convert split reward_hf reward_hf_2gb --max-shard-size 2GB
    """
    from xrlhf.export import split_model

    split_model(model, out, max_shard_size=max_shard_size)
    typer.echo(f"wrote {out}")
