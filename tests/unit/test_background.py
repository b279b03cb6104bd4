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


def test_where_no_thread_can_be_had_the_next_task_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    background, done = Background(SystemClock()), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        background.submit("key", done.set)
    assert ["background task not run: can't start new thread"] == caplog.messages
    assert not done.is_set()
    background.submit("key", done.set)
    assert done.wait(20)
    background.close()
