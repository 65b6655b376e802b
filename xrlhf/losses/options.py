"""Checks of the options that a recipe hands to a loss."""

from __future__ import annotations

import math

from xrlhf.errors import ConfigError

__all__ = ["number_option", "switch_option"]


def number_option(
    owner: str,
    name: str,
    value: float,
    *,
    minimum: float = 0.0,
    exclusive: bool = False,
    below: float = math.inf,
) -> float:
    """``value`` as a float, if it is a finite number in the range that makes sense.

    Args:
        owner: Class the option belongs to, for the message.
        name: The option's name, for the message.
        value: What the recipe gave.
        minimum: The smallest accepted value.
        exclusive: True where ``minimum`` itself is too small.
        below: The smallest value that is too large.

    Returns:
        The value as a float.

    Raises:
        ConfigError: ``value`` is no number, not finite, or out of range.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (value > minimum or (value == minimum and not exclusive)) and value < below:
        return float(value)
    limits = [f"greater than {minimum:g}" if exclusive else f"{minimum:g} or greater"] if minimum > -math.inf else []
    limits += [f"below {below:g}"] if below < math.inf else []
    accepted = " ".join(["a finite number", " and ".join(limits)]).rstrip()
    raise ConfigError(f"{owner}: {name} is {value!r}; accepted is {accepted}")


def switch_option(owner: str, name: str, value: bool) -> bool:
    """``value``, if it is True or False.

    Args:
        owner: Class the option belongs to, for the message.
        name: The option's name, for the message.
        value: What the recipe gave.

    Raises:
        ConfigError: ``value`` is anything else.
    """
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{owner}: {name} is {value!r}; accepted are True and False")
