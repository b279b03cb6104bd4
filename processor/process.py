"""What a process function works with: its key, its state, its timers, and the time.

A process function is the way out where no operator fits: it sees one row of one key at a time,
keeps whatever it likes for that key, and may ask to be called later. What it is given depends on
the log alone, so that it does the same after a crash, in a test and in a replay. What runs it is
process_operator.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from xxhash import xxh3_64_intdigest

from millstream import UsageError

from .event_time import to_ms

K = TypeVar("K")
S = TypeVar("S")

TimerClock: TypeAlias = Literal["event", "wall"]


class Timer(NamedTuple):
    """A call that was asked for."""

    at_ms: int
    """When it is due, UTC ms."""
    name: str = ""
    """Tells timers of one key apart."""
    clock: TimerClock = "event"
    """By which clock: event time passing it, or the wall clock."""


class Context(Generic[K, S]):
    """What a process function knows beside the row. Valid during the call alone.

    Times are UTC milliseconds. State is made by calling the declared type without arguments when
    a key is seen first; change it in place or set it anew.
    """

    __slots__ = (
        "_at",
        "_cancel",
        "_random",
        "_seed",
        "_set",
        "_start",
        "_state",
        "_touched",
        "_wall_ms",
        "key",
        "time_ms",
        "watermark_ms",
    )

    key: K
    """The key of the row, or of the timer."""
    time_ms: int
    """Event time of the row, or the time the timer was set for. Rows put out get it."""
    watermark_ms: int | None
    """W: no row with an earlier time is expected. None before the first row."""

    def __init__(
        self,
        start: Callable[[], S],
        set_timer: Callable[[Timer, Any], None],
        cancel_timer: Callable[[Timer, Any], None],
        *,
        wall_clock: bool,
    ) -> None:
        self._start = start
        self._set = set_timer
        self._cancel = cancel_timer
        self._wall_ms: int | None = 0 if wall_clock else None
        self._state: S | None = None
        self._touched = False
        self._random: random.Random | None = None
        self._seed: Callable[[], str] = str

    def __repr__(self) -> str:
        times = f"time_ms={self.time_ms}, watermark_ms={self.watermark_ms}"
        return f"<Context key={self.key!r}, {times}, state={self._state!r}>"

    @property
    def state(self) -> S:
        """What is kept for the key. Reading it counts as a change: it may be changed in place."""
        self._touched = True
        if self._state is None:
            self._state = self._start()
        return self._state

    @state.setter
    def state(self, value: S) -> None:
        self._touched = True
        self._state = value

    def clear(self) -> None:
        """Forget what is kept for the key. Its timers stay."""
        self._touched = True
        self._state = None

    @property
    def now_ms(self) -> int:
        """The wall clock at the last tick, from the journal: the same in a replay.

        Raises:
            UsageError: The function was declared without `wall_clock=True`.
        """
        if self._wall_ms is None:
            raise UsageError("process(..., wall_clock=True) lets a function see the wall clock")
        return self._wall_ms

    @property
    def random(self) -> random.Random:
        """Numbers that look random and depend on the input record alone: the same in a replay."""
        if self._random is None:
            seed = xxh3_64_intdigest(self._seed().encode())
            self._random = random.Random(seed)  # noqa: S311 - for sampling and jitter
        return self._random

    def set_timer(self, at: int | datetime, name: str = "", *, clock: TimerClock = "event") -> None:
        """Ask to be called back for this key: `on_timer(context, timer)`.

        With the event clock the call comes when W reaches `at`, before any later row; at once,
        after the row at hand, when W is there already. Setting it again changes nothing. One that
        a timer sets for its own time or an earlier one is called when W moves next.

        Args:
            at: UTC ms, or an aware datetime.
            name: Tells timers of one key and time apart.
            clock: "event", or "wall" for the wall clock, looked at every tick.

        Raises:
            UsageError: There is no `on_timer`, or no `wall_clock=True` for a wall timer; or such
                a name or clock cannot be.
            EventTimeError: `at` is no time.
        """
        self._set(_timer(at, name, clock), self.key)

    def cancel_timer(
        self, at: int | datetime, name: str = "", *, clock: TimerClock = "event"
    ) -> None:
        """Take a timer back; nothing happens when there is none."""
        self._cancel(_timer(at, name, clock), self.key)


def _timer(at: int | datetime, name: str, clock: TimerClock) -> Timer:
    """A timer as state can keep it.

    Raises:
        UsageError: The name is no text, or there is no such clock.
        EventTimeError: `at` is no time.
    """
    if clock not in ("event", "wall"):
        raise UsageError(f"clock={clock!r}: a timer goes by 'event' or 'wall'")
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise UsageError(f"name={name!r}: a timer's name is a str that UTF-8 can hold") from error
    return Timer(to_ms(at), name, clock)
