"""Options that several commands share, and how a recipe is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "CfgOptions",
    "ConfigName",
    "DeviceName",
    "Dtype",
    "MaxLength",
    "Overrides",
    "TokenBudget",
    "TruncationName",
    "WorkDir",
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
    "strategy": ("device",),
    "visualizer*": ("save_dir", "name"),
    "*map_fn": ("row",),
}
"""Arguments that the builders put in, by the place in the recipe."""
