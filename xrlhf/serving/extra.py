"""What the server needs beside xrlhf itself."""

from __future__ import annotations

import importlib

from xrlhf.errors import MissingExtraError

__all__ = ["check_can_serve"]


def check_can_serve() -> None:
    """Refuse before a model is loaded if nothing could be served.

    Raises:
        MissingExtraError: A package of the extra is not installed.
    """
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if not _is_there(name)]
    if missing:
        raise MissingExtraError(f"serving needs {missing[0]}, which is not installed: pip install 'xrlhf[serve]'")


def _is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
