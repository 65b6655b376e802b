"""Puts tiny_models, environments and peer_env on the path of this folder's tests."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools" / "bench")]
