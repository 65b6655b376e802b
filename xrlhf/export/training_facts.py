"""What a finished run says of itself: for the card of the model that came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from xrlhf.config.literals import to_literals
from xrlhf.config.secrets import mask_secrets
from xrlhf.data.reasons import Reason
from xrlhf.engine.checkpoint import step_of
from xrlhf.engine.hooks.curves import read_curves
from xrlhf.hub import is_hub_name

__all__ = ["SourceFacts", "TrainingFacts", "public_name", "training_facts"]

_SECTIONS = ("tokenizer", "model", "optim_wrapper", "train_cfg", "val_cfg", "randomness", "param_scheduler", "sources")
_LONGEST = 200


@dataclass(frozen=True)
class SourceFacts:
    """One source of a run's data.

    Args:
        split: ``"train"`` or ``"val"``.
        name: What the report of the data calls it.
        num_rows: Rows it has.
        num_groups: Groups that were used.
        num_tokens: Tokens of these, prompts once.
        left_out: Rows that were left out, by reason in words.
    """

    split: str
    name: str
    num_rows: int
    num_groups: int
    num_tokens: int
    left_out: Mapping[str, int]

    @property
    def left_out_in_words(self) -> str:
        """Such as ``"12: longer than the token limit"``; empty where nothing was."""
        return "; ".join(f"{count:,}: {reason}" for reason, count in self.left_out.items())


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of a training run.

    Args:
        base: The model it began with, by a name that means something elsewhere; None where the recipe names none.
        objective: The loss with its options.
        step: Optimizer steps done; None where the checkpoint's name does not say.
        settings: The plain values at the top of the recipe, as text, by name.
        data: Every source.
        results: The validation after that step, by name; empty where there was none.
    """

    base: str | None
    objective: str | None
    step: int | None
    settings: Mapping[str, str]
    data: tuple[SourceFacts, ...]
    results: Mapping[str, float]


def training_facts(recipe: Config, checkpoint: Path) -> TrainingFacts:
    """What the recipe and the files beside a checkpoint say of a run; what is missing is left out.

    No path of the machine is among it, and no secret: of a path its last part is told.

    Args:
        recipe: The recipe it was trained with.
        checkpoint: Its checkpoint, in the run's directory.
    """
    model = recipe.get("model") or {}
    step = step_of(checkpoint)
    base = (model.get("backbone") or {}).get("path") if isinstance(model.get("backbone"), Mapping) else None
    return TrainingFacts(
        base=None if base is None else public_name(base),
        objective=_call(model["loss"]) if isinstance(model.get("loss"), Mapping) else None,
        step=step,
        settings=dict(_settings(recipe)),
        data=tuple(_sources(checkpoint.parent / "data_report.json")),
        results={} if step is None else _results(checkpoint.parent, step),
    )


def public_name(path: str) -> str:
    """A model's name for others: as it is where it is a hub's, and the last part of a path on disk."""
    return path if is_hub_name(path) else Path(path).name


def _settings(recipe: Config) -> Iterator[tuple[str, str]]:
    for name, value in mask_secrets({key: to_literals(value, key) for key, value in recipe.items()}).items():
        is_part = isinstance(value, Mapping) and "type" in value
        if name in _SECTIONS or name.endswith(("_dataloader", "_hooks", "_dir")) or is_part or name.startswith("_"):
            continue
        text = _text(value)
        if value is not None and len(text) <= _LONGEST:
            yield name, text


def _text(value: Any) -> str:
    """A value in one line, paths on disk by their last part and classes by their own name."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str):
        is_path = "/" in value and "\n" not in value and " " not in value and not is_hub_name(value)
        return Path(value).name if is_path else value
    return f"{value:g}" if isinstance(value, float) else str(value)


def _call(spec: Mapping[str, Any]) -> str:
    """``DPOLoss(beta=0.1)`` of ``dict(type=DPOLoss, beta=0.1)``."""
    options = {key: to_literals(value, key) for key, value in spec.items() if key != "type"}
    name = str(to_literals(spec["type"], "type")).rpartition(".")[2]
    return f"{name}({', '.join(f'{key}={_text(value)}' for key, value in options.items())})"


def _sources(file: Path) -> Iterator[SourceFacts]:
    for split, sources in _read(file).items():
        for name, found in sources.items():
            yield SourceFacts(
                split,
                name,
                found["num_rows"],
                found["num_groups_used"],
                found["num_tokens"],
                {Reason(reason).description: count for reason, count in found["left_out"].items()},
            )


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _results(folder: Path, step: int) -> dict[str, float]:
    """The validation that the run's log has of a step."""
    return {
        name.removeprefix("val/"): value
        for name, points in read_curves(folder).items()
        if name.startswith("val/")
        for at, value in points
        if at == step
    }
