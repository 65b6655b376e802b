"""What the tests of the data path share."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests, and the worker processes they start, import tiny_tokenizer and own_map_fns by their names.
sys.path.insert(0, str(Path(__file__).parent))
