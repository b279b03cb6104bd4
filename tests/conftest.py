"""Makes the modules in `tests/support` importable, by their own names, from every test.

Hypothesis shall not judge how fast a machine draws examples that does other work besides.
"""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

settings.register_profile("millstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("millstream")
