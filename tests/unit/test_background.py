import logging
import threading

import pytest

from millstream.background import Background
from millstream.clock import SystemClock
from millstream.errors import StorageError


def fail_with(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (StorageError("full", errno=28, path="f"), logging.WARNING),
        (ZeroDivisionError("a mistake"), logging.ERROR),
        (OSError(5, "not one of ours"), logging.ERROR),
    ],
)
def test_tasks_after_one_that_fails_are_run(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    background = Background(SystemClock())
    done = threading.Event()

    background.submit("fails", lambda: fail_with(error))
    background.submit("works", done.set)

    assert done.wait(10)
    background.close()
    (record,) = caplog.records
    assert (level, level == logging.ERROR) == (record.levelno, record.exc_info is not None)
    assert "background task failed" in record.message
