"""``xrlhf test``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, DeviceName, Overrides, read_recipe
from xrlhf.errors import UserError
from xrlhf.files import replacing

__all__ = ["test"]


def test(
    config: ConfigName,
    checkpoint: Annotated[str, typer.Option(help="A checkpoint (iter_N.pth, or iter_N) or a Hugging Face directory.")],
    overrides: Overrides = None,
    cfg_options: CfgOptions = None,
    device: DeviceName = None,
    out: Annotated[
        Optional[Path],
        typer.Option(help="Write the metrics to this JSON file too."),
    ] = None,
) -> None:
    """Evaluate a checkpoint on a recipe's validation data.

    Example: xrlhf test tiny_reward_cpu --checkpoint work_dirs/tiny_reward_cpu/iter_1000.pth
    """
    recipe = read_recipe(config, cfg_options, overrides)
    from xrlhf.devices import find_device
    from xrlhf.engine.evaluate import evaluate

    chosen = find_device(device or recipe.get("device"))
    chosen.set_device(0)
    metrics = evaluate(recipe, checkpoint, chosen)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        is_count = name.rpartition("/")[2].startswith("num_")
        typer.echo(f"{name:<{width}}  {value:.0f}" if is_count else f"{name:<{width}}  {value:.4f}")
    if out is not None:
        _write(metrics, out)


def _write(metrics: dict[str, float], out: Path) -> None:
    try:
        with replacing(out) as aside:
            aside.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
