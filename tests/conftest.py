"""Makes the modules in `tests/support` importable, by their own names, from every test.

Hypothesis shall not judge how fast a machine draws examples that does other work besides. It
draws the same examples in every run, so that what failed fails again; MILLSTREAM_SEED, which
`make crash SEED=` sets, has it draw others.

The processes that tests start may keep what they compile, even where somebody has asked Python not
to: compiling all modules anew takes several times as long as starting otherwise does. They heed
Ctrl-C also where the suite runs in the background of a shell, which lets its jobs ignore it.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent / "support"))

import matrix
from kill_rounds import fast_directory

settings.register_profile(
    "millstream",
    deadline=None,
    derandomize="MILLSTREAM_SEED" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("millstream")


@pytest.fixture
def fast_path() -> Iterator[Path]:
    """A directory where a sync takes no time, if there is such a place."""
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        yield Path(directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that ask for a cell over the matrix of `support/matrix.py`."""
    for name in {"cell", "any_cell"} & set(metafunc.fixturenames):
        mark = metafunc.definition.get_closest_marker("cells")
        wanted = mark.kwargs if mark is not None else {}
        cells = matrix.chosen(metafunc.function.__name__, columns=name == "any_cell", **wanted)
        metafunc.parametrize(name, cells, ids=str)
