"""A Python function of the user's own."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xrlhf.config.resolve import resolve
from xrlhf.errors import ConfigError, RewardError, error_line
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards.answers import check_weight, place_of, response_of, reward_table
from xrlhf.rl.samples import PromptRow, Sample

__all__ = ["FunctionReward"]

_GIVEN = ("prompts", "completions", "completion_ids", "endings")


@REWARDS.register_module()
class FunctionReward:
    """What a function says.

    It is called once for all answers of a step, with keyword arguments that are lists of one item an answer, the
    answers to one prompt side by side:

    - ``prompts``: messages, or text;
    - ``completions``: ``[{"role": "assistant", "content": ...}]``, or text where the prompt is text;
    - ``completion_ids``: lists of the policy's token ids;
    - ``endings``: ``"stop"`` or ``"length"``;
    - every column of the prompts' rows by its name, None where a row lacks it.

    Those it has no parameter for are left out, unless it takes ``**kwargs``. It returns a number for each answer, or
    None for an answer that it says nothing of. That is how TRL calls reward functions (huggingface/trl, GRPOTrainer),
    so those work here as they are; coroutine functions too.

    Args:
        function: The function, or its dotted name such as ``"my_package.my_module.my_reward"``.
        weight: What it counts in the sum of all rewards; any finite number.
        name: What the log calls it; the function's own name if None.
        options: More keyword arguments of the function.

    Raises:
        ConfigError: There is no such function, or ``weight`` is not a finite number.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        *,
        weight: float = 1.0,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        found = resolve(function)
        if not callable(found):
            raise ConfigError(f"function {function!r} is {type(found).__name__}, which cannot be called")
        self._function: Callable[..., Any] = found
        self.called = function if isinstance(function, str) else getattr(found, "__qualname__", type(found).__name__)
        self.name = name or self.called.rpartition(".")[2]
        self.weight = check_weight(self.name, weight)
        self._options = dict(options or {})
        self._accepts = _parameters_of(found)
        if self._accepts is not None and (unknown := self._options.keys() - self._accepts):
            raise ConfigError(f"reward function {self.called} takes no {', '.join(sorted(unknown))}")

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32, NaN where the function gives None.

        Raises:
            RewardError: The function raised an error, or gave something else than a number or None for each answer.
        """
        flat = [
            (row, number, sample)
            for row, drawn in zip(rows, samples, strict=True)
            for number, sample in enumerate(drawn)
        ]
        arguments: dict[str, Any] = {
            "prompts": [row.prompt for row, _, _ in flat],
            "completions": [response_of(row.prompt, sample.text) for row, _, sample in flat],
            "completion_ids": [sample.ids.tolist() for _, _, sample in flat],
            "endings": [sample.ending for _, _, sample in flat],
        }
        for column in dict.fromkeys(name for row in rows for name in row.meta):
            if column not in _GIVEN:
                arguments[column] = [row.meta.get(column) for row, _, _ in flat]
        arguments.update(self._options)
        if self._accepts is not None:
            arguments = {name: value for name, value in arguments.items() if name in self._accepts}
        try:
            given = self._function(**arguments)
            if inspect.isawaitable(given):
                given = asyncio.run(_awaited(given))
        except Exception as error:
            raise RewardError(
                f"reward function {self.called} failed: {type(error).__name__}: {error_line(error)}"
            ) from error
        values = self._checked(given, len(flat))
        found = iter([self._number(value, row, number) for value, (row, number, _) in zip(values, flat, strict=True)])
        return reward_table(samples, [[next(found) for _ in drawn] for drawn in samples])

    def _checked(self, given: Any, num: int) -> list[Any]:
        if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__len__"):
            raise RewardError(
                f"reward function {self.called} gave {type(given).__name__}; expected a list of {num} numbers"
            )
        values = list(given)
        if len(values) != num:
            raise RewardError(f"reward function {self.called} gave {len(values)} rewards for {num} answers")
        return values

    def _number(self, value: Any, row: PromptRow, number: int) -> float:
        if value is None:
            return math.nan
        try:
            found = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            shown = f"{value:g}" if isinstance(value, float) else type(value).__name__
            raise RewardError(
                f"reward function {self.called} gave {shown} for {place_of(row, number)}; expected a finite number, or "
                "None where it has nothing to say"
            )
        return found


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _parameters_of(function: Callable[..., Any]) -> set[str] | None:
    """Names it can be called with; None for any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
