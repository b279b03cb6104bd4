"""Threads that do tasks beside the caller: at the same time, and each error for who waits."""

from __future__ import annotations

import itertools
import threading
from threading import Barrier, Event

import pytest
from interrupted_calls import InterruptAt, ends

from millstream.helpers import HELPERS_MAX, Helpers

TIMEOUT = 20


def test_tasks_are_done_at_the_same_time() -> None:
    helpers, barrier = Helpers(), Barrier(3, timeout=TIMEOUT)
    for _ in range(2):
        begun = [helpers.begin(barrier.wait) for _ in range(2)]
        barrier.wait()
        for each in begun:
            each.wait()
    helpers.close()


def test_an_error_is_raised_by_the_one_who_waits_and_helpers_go_on() -> None:
    helpers = Helpers()

    def fail() -> None:
        raise KeyError("the cause")

    failing, other = helpers.begin(fail), helpers.begin(Event)
    with pytest.raises(KeyError, match="the cause"):
        failing.wait()
    other.wait()
    helpers.close()


def test_what_exceeds_the_helpers_waits_its_turn() -> None:
    helpers, barrier, done = Helpers(), Barrier(HELPERS_MAX, timeout=TIMEOUT), []
    begun = [helpers.begin(barrier.wait) for _ in range(HELPERS_MAX)]
    begun += [helpers.begin(lambda: done.append(threading.get_ident())) for _ in range(5)]
    for each in begun:
        each.wait()
    helpers.close()
    assert 5 == len(done)


def test_a_close_waits_for_what_was_begun_and_later_tasks_are_done_at_once() -> None:
    helpers, go, done = Helpers(), Event(), []
    started = Event()

    def task() -> None:
        started.set()
        assert go.wait(TIMEOUT)
        done.append("begun")

    helpers.begin(task)
    assert started.wait(TIMEOUT)
    closing = threading.Thread(target=helpers.close)
    closing.start()
    assert [] == done
    go.set()
    closing.join(TIMEOUT)
    assert ["begun"] == done

    helpers.begin(lambda: done.append("later"))
    assert ["begun", "later"] == done
    helpers.close()


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a system does that has no room for another thread."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_where_no_thread_can_be_had_a_task_is_done_by_who_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helpers, done = Helpers(), Event()
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        helped = helpers.begin(done.set)
        assert done.is_set()
        helped.wait()
    helpers.begin(Event).wait()
    helpers.close()


def test_a_thread_whose_start_was_interrupted_keeps_no_other_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    helpers, barrier = Helpers(), Barrier(3, timeout=TIMEOUT)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_start)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                helpers.begin(Event)
    begun = [helpers.begin(barrier.wait) for _ in range(2)]
    barrier.wait()
    for each in begun:
        each.wait()
    closing = threading.Thread(target=helpers.close, daemon=True)
    closing.start()
    closing.join(TIMEOUT)
    assert not closing.is_alive()


def test_an_interrupt_of_which_the_start_of_a_thread_makes_another_error_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted_start(_: threading.Thread) -> None:
        try:
            raise KeyboardInterrupt  # while it waits, and the wait lets go of a lock it has not
        finally:
            threading.Lock().release()

    helpers, done = Helpers(), Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_start)
        with pytest.raises(KeyboardInterrupt):
            helpers.begin(done.set)
    assert not done.is_set()
    helpers.begin(done.set).wait()
    helpers.close()


def test_an_interrupt_at_any_call_keeps_nobody_from_the_end() -> None:
    for call in itertools.count(1):
        interrupt = InterruptAt(call)

        def work(interrupt: InterruptAt = interrupt) -> None:
            with Helpers(2) as helpers:

                def ask() -> None:
                    begun = [helpers.begin(Event) for _ in range(3)]
                    assert [False] * 3 == [each.wait().is_set() for each in begun]

                interrupt.run(ask)

        assert ends(work), call
        if interrupt.remaining > 0:
            break
    assert call > 10
