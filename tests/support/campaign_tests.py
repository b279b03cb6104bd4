"""Of a campaign the tests: in an order of the seed, begun until its share of the time is up.

A plugin that `tests/crash/campaign.py` gives to pytest. What there was no time for is not reported;
another seed leaves out others. Of each failure the command is printed that repeats it.
"""

from __future__ import annotations

import os
import time
from random import Random
from typing import Any

import pytest

FOLDERS = ("tests/crash/", "tests/property/")
"""All of these are tried; of the others what kills processes."""
SIZES = (
    *("MILLSTREAM_SEED", "MILLSTREAM_CELLS", "MILLSTREAM_FLIPS", "MILLSTREAM_CATALOG_FLIPS"),
    *("MILLSTREAM_FUZZ_EXAMPLES", "MILLSTREAM_MODEL_EXAMPLES", "MILLSTREAM_PLANS"),
    *("MILLSTREAM_SEGMENTS", "MILLSTREAM_TOPICS", "MILLSTREAM_KILLS"),
)
"""What tests take from the environment, and a repetition needs, too."""
SECONDS = float(os.environ["MILLSTREAM_TEST_SECONDS"])
"""So long after they were collected tests begin."""
BEGAN = pytest.StashKey[float]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what breaks nothing, and shuffle the rest."""
    wanted = [
        item
        for item in items
        if item.nodeid.startswith(FOLDERS) or item.get_closest_marker("crash") is not None
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(wanted)])
    Random(os.environ["MILLSTREAM_SEED"]).shuffle(wanted)
    items[:] = wanted


def pytest_collection_finish(session: pytest.Session) -> None:
    """The time begins to run."""
    session.stash[BEGAN] = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Begin nothing any more when the time is up: as if it had been run, without a report."""
    return True if time.monotonic() - item.session.stash[BEGAN] > SECONDS else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how each failure is repeated."""
    sizes = " ".join(f"{name}={os.environ[name]}" for name in SIZES if name in os.environ)
    for kind in ("failed", "error"):
        for report in terminalreporter.stats.get(kind, []):
            seed = f"--hypothesis-seed={os.environ['MILLSTREAM_SEED']}"
            command = f"{sizes} .venv/bin/pytest {seed} '{report.nodeid}'"
            terminalreporter.write_line(f"again: {command}")
