"""Errors that a user can mend, and how the command line answers them.

A :class:`UserError` is one clear line that names the file, line, key or option and says what to change; the command
line prints it without a traceback and exits with status 2. A :class:`TrainingError` ends a run that had started: the
command line prints it and exits with status 1.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "LaunchError",
    "MissingExtraError",
    "ModelError",
    "RewardError",
    "TrainingError",
    "UserError",
    "XrlhfError",
    "error_line",
]


class XrlhfError(Exception):
    """Base of all errors that xrlhf raises on purpose."""


class UserError(XrlhfError):
    """Input, recipe or environment is wrong; the message says what to change."""


class ConfigError(UserError):
    """A recipe or an override is wrong."""


class DataError(UserError):
    """A data file, a row format or a share of bad rows is wrong."""


class ModelError(UserError):
    """A model or tokenizer directory cannot be used as asked."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another architecture."""


class DeviceError(UserError):
    """A device was asked for that this machine or this build cannot use."""


class LaunchError(UserError):
    """The launcher's environment (ranks, addresses, ports) is wrong."""


class MissingExtraError(UserError):
    """An optional package is needed; the message names the extra to install."""


class TrainingError(XrlhfError):
    """A run that had started must stop, for instance at a non-finite loss."""


class RewardError(TrainingError):
    """A source of rewards failed, after whatever retries it makes: no answer goes without a reward in silence."""


def error_line(error: BaseException, limit: int = 300) -> str:
    """The message of a library's error on one line, cut after ``limit`` characters; its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."
