"""Checks of the numbers that a recipe hands to a loss."""

from __future__ import annotations

import math

from xrlhf.errors import ConfigError

__all__ = ["number_option"]


def number_option(owner: str, name: str, value: float, *, minimum: float = 0.0, exclusive: bool = False) -> float:
    """``value`` as a float, if it is a finite number that is large enough.

    Args:
        owner: Class the option belongs to, for the message.
        name: The option's name, for the message.
        value: What the recipe gave.
        minimum: The smallest accepted value.
        exclusive: True where ``minimum`` itself is too small.

    Returns:
        The value as a float.

    Raises:
        ConfigError: ``value`` is no number, not finite, or too small.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (value > minimum or (value == minimum and not exclusive)):
        return float(value)
    accepted = f"greater than {minimum:g}" if exclusive else f"{minimum:g} or greater"
    raise ConfigError(f"{owner}: {name} is {value!r}; accepted is a finite number {accepted}")
