"""Options that several commands share, and how a recipe is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmengine.config import Config

    from xrlhf.data.table import MapFn

__all__ = [
    "CfgOptions",
    "ConfigName",
    "DeviceName",
    "Dtype",
    "FormatName",
    "FormatOptions",
    "MaxLength",
    "Overrides",
    "TokenBudget",
    "TruncationName",
    "WorkDir",
    "map_fn_of",
    "read_recipe",
]

# typer reads these annotations at run time, on Python 3.10 too.
ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe: a file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="More overrides, as after --cfg-options.", show_default=False),
]
CfgOptions = Annotated[
    list[str] | None,
    typer.Option("--cfg-options", metavar="KEY=VALUE", help="Override a value of the recipe; more may follow."),
]
WorkDir = Annotated[str | None, typer.Option(help="Where the run's files go, in place of the recipe's work_dir.")]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="cuda, xpu, hpu, ipex or cpu; if not given, the first that is there, but not ipex."),
]

Dtype = Annotated[str, typer.Option(help="Type the weights are held in.")]
MaxLength = Annotated[
    int | None, typer.Option(help="Most tokens of a conversation; the model's own limit if not given.")
]
TruncationName = Annotated[str, typer.Option(help="For longer ones: drop (no score), prompt or end.")]
TokenBudget = Annotated[int, typer.Option(help="Most tokens of one forward pass.")]
FormatName = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="The rows' format, as `xrlhf list-dataset-formats` names it."),
]
FormatOptions = Annotated[
    list[str] | None,
    typer.Option("--format-option", metavar="KEY=VALUE", help="An option of the format; may be given repeatedly."),
]


def map_fn_of(name: str | None, options: Sequence[str] | None) -> MapFn | None:
    """The map function that ``--format`` and ``--format-option`` name; None where there is no format.

    Raises:
        ConfigError: No such format, or options that it does not take or that have none to belong to.
    """
    from xrlhf.errors import ConfigError
    from xrlhf.evaluation.rows import format_map_fn

    if name is None:
        if options:
            raise ConfigError("--format-option belongs to a format: name it with --format")
        return None
    return format_map_fn(name, options or ())


def read_recipe(name: str, *overrides: Sequence[str] | None) -> Config:
    """Load and check the recipe called ``name`` with all overrides applied.

    Raises:
        ConfigError: The recipe or an override is wrong.
    """
    from xrlhf.config import check_recipe, find_recipe, load_recipe

    options = [option for group in overrides for option in group or ()]
    recipe = load_recipe(find_recipe(name), options)
    check_recipe(recipe, INJECTED)
    return recipe


INJECTED = {
    "tokenizer": ("tokenizer",),
    "model": ("tokenizer",),
    "*dataset": ("tokenizer",),
    "train_cfg": ("runner", "dataloader"),
    "val_cfg": ("runner", "dataloader", "evaluator"),
    "optim_wrapper.optimizer": ("params",),
    "param_scheduler*": ("optimizer",),
    "*rollouts": ("policy", "tokenizer", "device"),
    "rewards.*": ("device",),
    "strategy": ("device",),
    "visualizer*": ("save_dir", "name"),
    "*map_fn": ("row",),
}
"""Arguments that the builders put in, by the place in the recipe."""
