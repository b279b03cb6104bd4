"""The thread that writes commits: one after another, and errors for who asks, however often."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import weakref
from functools import partial
from types import FrameType
from typing import Any

import pytest
from interrupted_calls import InterruptAt, ends

from millstream.processor.commit_thread import CommitThread
from millstream.processor.runtime import _interruptible


def test_calls_are_done_in_their_order_and_the_end_waits_for_them() -> None:
    done: list[int] = []
    go = threading.Event()

    def first() -> str:
        assert go.wait(20)
        done.append(1)
        return "first"

    with CommitThread() as beside:
        one = beside.begin(first)
        two = beside.begin(lambda: done.append(2))
        assert not one.done
        go.set()
        assert ["first", "first"] == [one.result(), one.result()]
    assert two.done
    assert [1, 2] == done


def test_an_error_is_told_as_often_as_one_asks() -> None:
    with CommitThread() as beside:
        begun = beside.begin(lambda: int("x"))
        for _ in range(2):
            with pytest.raises(ValueError, match="invalid literal"):
                begun.result()
        assert isinstance(begun.error(), ValueError)


def test_what_is_done_holds_nothing_any_more() -> None:
    """An epoch may be a large part of the memory there is."""
    epoch = {1, 2}
    held = weakref.ref(epoch)
    with CommitThread() as beside:
        begun = beside.begin(partial(len, epoch))
        del epoch
        assert 2 == begun.result()
        assert held() is None


def test_an_interrupt_at_any_call_keeps_nobody_from_the_end() -> None:
    for call in itertools.count(1):
        interrupt = InterruptAt(call)

        def work(interrupt: InterruptAt = interrupt) -> None:
            with CommitThread() as beside:

                def commit() -> None:
                    beside.begin(lambda: None).result()
                    beside.begin(lambda: None).result()

                with contextlib.suppress(RuntimeError):  # the start of a thread makes this of it
                    interrupt.run(commit)

        assert ends(work), call
        if interrupt.remaining > 0:
            break
    assert call > 10


def test_after_an_interrupted_start_one_thread_does_the_calls_and_both_end() -> None:
    """The end woke the one that nobody waited for."""
    for call in itertools.count(1):
        interrupt = InterruptAt(call)

        def work(interrupt: InterruptAt = interrupt) -> None:
            with CommitThread() as beside:
                with contextlib.suppress(RuntimeError):  # the start of a thread makes this of it
                    interrupt.run(lambda: beside.begin(lambda: None))
                assert "again" == beside.begin(lambda: "again").result()

        assert ends(work), call
        if interrupt.remaining > 0:
            break
    assert call > 10


def test_ctrl_c_may_come_at_any_call_of_a_wait_for_it() -> None:
    """It stops the run; the handler must not wait for what its own thread holds."""

    def deadline(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("the handler stands still")

    class SignalAt(InterruptAt):
        def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
            try:
                super()._profile(frame, event, argument)
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)

    former = signal.signal(signal.SIGALRM, deadline)
    try:
        for call in itertools.count(1):
            at = SignalAt(call)
            with _interruptible(None) as stop:
                signal.setitimer(signal.ITIMER_REAL, 30)
                at.run(lambda stop=stop: stop.wait(0.001))  # type: ignore[misc]
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert stop.is_set() == (at.remaining <= 0)
            if at.remaining > 0:
                break
    finally:
        signal.signal(signal.SIGALRM, former)
    assert call > 1
