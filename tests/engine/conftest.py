"""What the tests of the engine share."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests and the processes they start import toy by its name.
sys.path.insert(0, str(Path(__file__).parent))
