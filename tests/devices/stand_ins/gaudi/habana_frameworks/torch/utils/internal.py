"""Which mode was chosen when the package was imported."""

from __future__ import annotations

import os

_LAZY = os.environ.get("PT_HPU_LAZY_MODE", "0") == "1"


def is_lazy() -> bool:
    return _LAZY
