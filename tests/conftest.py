"""Makes the modules in `tests/support` importable, by their own names, from every test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
