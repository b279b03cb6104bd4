"""Fixtures for tests of programs that use Millstream. pytest finds them by itself.

millstream_clock    a wall clock that stands still until it is told to go on
millstream_store    a store in memory that uses it
drive               `drive(pipeline)` gives a `Driver`, closed at the end of the test
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from millstream import Store
    from millstream.processor import Driver, Pipeline
    from millstream.testing import ManualClock


@pytest.fixture
def millstream_clock() -> ManualClock:
    """A wall clock that a test turns."""
    from millstream.testing import ManualClock  # noqa: PLC0415 - only where it is used

    return ManualClock(1_767_225_600_000)


@pytest.fixture
def millstream_store(millstream_clock: ManualClock) -> Iterator[Store]:
    """A store in memory, closed at the end."""
    import millstream  # noqa: PLC0415 - only where it is used

    with millstream.open(":memory:", clock=millstream_clock) as store:
        yield store


@pytest.fixture
def drive() -> Iterator[Callable[[Pipeline], Driver]]:
    """Makes a driver of a pipeline."""
    with ExitStack() as stack:

        def open_driver(pipeline: Pipeline) -> Driver:
            if not hasattr(pipeline, "driver"):
                from millstream import UsageError  # noqa: PLC0415 - only where it is used

                raise UsageError(f"drive() takes a pipeline, not {pipeline!r}")
            return stack.enter_context(pipeline.driver())

        yield open_driver
