"""The run loop: read a micro-batch, process it, commit an epoch now and then.

Nothing is read that an epoch cannot hold, and nothing is done per record here. Where a micro-batch
or an epoch ends depends on speed and time; no result does.

A commit is written by another thread, which waits for the disk while this one goes on with the next
epoch. When it comes out, at the end of a step or when the input is dry, its outputs are delivered
and progress is told; an error in it ends the run.
"""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final, Literal, TypedDict

from millstream import LogReader, Store, TopicPartition, UsageError, parse_duration_ms

from .commit_thread import CommitThread
from .connections import Connections
from .epoch import Epochs
from .kept import KEPT_COUNT, Keeping
from .plan import Plan
from .stages import OperatorMetrics
from .state_log import checkpoint_name
from .ticker import TICK_MS, Ticker
from .ticks import Tick
from .topology import Topology
from .watermark import BEFORE_TIME

INPUT_BYTES: Final = 1 << 19
"""About what one read asks for; a step may take only some of it."""

LANE_BYTES: Final = 8 << 20
"""The same where rows are columns: a step has costs of its own, and rows hardly any."""

EPOCH_BYTES: Final = 8 << 20
"""Outputs kept in memory before an epoch commits early."""

_PATIENCE: Final = 4
"""So many times longer than asked for an epoch may be while the one before it is being written."""

_TAKE_S: Final = 0.1
"""Sources outside the store are asked at least this often, and whenever the input is dry."""

_WAIT_S: Final = 0.1
"""Longest wait without looking at the stop event, which cannot wake the reader."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a run has done so far, as of its last epoch."""

    epochs: int
    """Epochs committed by this run."""
    records_in: int
    records_out: int
    late: int
    """Rows refused because all of their windows were closed."""
    dead_letters: int
    lag: int
    """Offsets between where the pipeline stands and the visible end of its input."""
    watermark_ms: int | None
    """The least W of the sources, UTC ms; None before the first row."""
    epoch_s: float = 0.0
    """Seconds the last commit took, that of writing it beside the next epoch included."""
    operators: tuple[OperatorMetrics, ...] = field(default=(), repr=False)
    """What each operator has done, in the order of the plan."""
    taken_in: Mapping[str, int] = field(default_factory=dict)
    """Records taken in from each source outside the store, by its name."""
    source_lag_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes still to be taken in from each source of files outside the store, by its name."""
    sink_lag: Mapping[str, int] = field(default_factory=dict)
    """Offsets still to be delivered to each sink outside the store, by its name."""


class RunOptions(TypedDict, total=False):
    """How to run; see `Pipeline.run`."""

    until: Literal["end"] | None
    batch_records: int | None
    epoch_ms: int
    tick_ms: int
    on_end: Literal["hold", "flush"]
    keep_every: str | int | timedelta | None
    keep_count: int
    stop: threading.Event | None
    on_progress: Callable[[Metrics], None] | None


def run_over_store(
    plan: Plan,
    store: Store,
    options: RunOptions,
    *,
    connect: bool = True,
    overlap: bool | None = None,
) -> Metrics:
    """Run a plan over a store; see `Pipeline.run`.

    Args:
        plan: What to run.
        store: What to run it over.
        options: How.
        connect: Whether to take in sources outside the store and to deliver to sinks there.
        overlap: Whether commits are written beside the next epoch. By default they are, but not in
            memory: there is no disk to wait for, and simulated crashes come at the same places.
    """
    _check(options)
    overlap = not store.in_memory if overlap is None else overlap
    with (
        store.own(checkpoint_name(plan.name)) as ownership,
        CommitThread() if overlap else nullcontext() as beside,
        Connections(store, plan) as connections,
        Epochs(store, plan, ownership, beside, _keeping(options)) as epochs,
        _interruptible(options.get("stop")) as stop,
    ):
        # The input first: with a source missing nothing is created for the output.
        if connect:
            connections.open_sources()
        positions = epochs.positions()
        if connect:
            connections.open_sinks()
        topology = epochs.topology()
        with store.reader(positions) as reader:
            return _Run(epochs, topology, reader, connections, options).loop(stop)


def _check(options: RunOptions) -> None:
    unknown = set(options) - set(RunOptions.__annotations__)
    if unknown:
        raise UsageError(
            f"unknown options {sorted(unknown)}; there are {sorted(RunOptions.__annotations__)}"
        )
    if options.get("until") not in {None, "end"}:
        raise UsageError(f"until={options.get('until')!r}: use 'end', or None to run for ever")
    if options.get("on_end", "hold") not in {"hold", "flush"}:
        raise UsageError(f"on_end={options.get('on_end')!r}: use 'hold' or 'flush'")
    batch_records = options.get("batch_records")
    if batch_records is not None and batch_records < 1:
        raise UsageError(f"batch_records must be at least 1, not {batch_records}")
    if options.get("epoch_ms", 100) < 0:
        raise UsageError("epoch_ms cannot be negative")
    if options.get("tick_ms", TICK_MS) < 1:
        raise UsageError("tick_ms must be at least 1")
    _keeping(options)


def _keeping(options: RunOptions) -> Keeping:
    every = options.get("keep_every")
    keeping = Keeping(
        None if every is None else parse_duration_ms(every), options.get("keep_count", KEPT_COUNT)
    )
    if keeping.limit < 1:
        raise UsageError("keep_count must be at least 1")
    return keeping


@dataclass(frozen=True, slots=True)
class _Begun:
    """A commit that was begun."""

    record_count: int
    """Records it makes visible."""
    metrics: Metrics | None
    """What had been done by then, if anybody wants to know."""


class _Run:
    """One run of a pipeline: the loop and what it counts."""

    def __init__(
        self,
        epochs: Epochs,
        topology: Topology,
        reader: LogReader,
        connections: Connections,
        options: RunOptions,
    ) -> None:
        store = connections.store
        self._store = store
        self._connections = connections
        self._epochs = epochs
        self._topology = topology
        self._reader = reader
        self._batch_records = options.get("batch_records") or topology.step_records
        self._batch_bytes = LANE_BYTES if topology.works_on_columns else INPUT_BYTES
        self._epoch_s = options.get("epoch_ms", 100) / 1000
        self._until_end = options.get("until") == "end"
        self._flush = options.get("on_end", "hold") == "flush"
        self._on_progress = options.get("on_progress")
        self._clock = store.clock
        self._ticker = Ticker(store, topology, options.get("tick_ms", TICK_MS))
        self._first_epoch = epochs.checkpoint.epoch
        self._records_out = 0
        self._uncommitted = False
        self._begun: _Begun | None = None
        """The commit that is being written."""
        self._due = self._clock.monotonic() + self._epoch_s

    def loop(self, stop: threading.Event) -> Metrics:
        """Run until the end, or until `stop` is set; the last epoch is committed."""
        while not stop.is_set():
            before = self._reader.positions
            batches = self._reader.poll(self._batch_records, self._batch_bytes)
            if batches:
                # Ahead of the rows: no function may see the time of a run long ago, or none.
                self._tick(before, at_end=False)
                with _uncollected():
                    self._topology.process(batches)
                self._uncommitted = True
                self._commit_if_due()
                if self._connections.since_taken_s >= _TAKE_S:
                    self._take_in()
            elif self._take_in() or self._tick(before, at_end=True) or self._finish():
                continue
            elif self._until_end and self._reader.at_end():
                if self._flush and self._topology.waits():
                    self._take(Tick(self._topology.now_ms, flush=True), before)
                break
            else:
                self._idle()
        self._commit()
        self._finish()
        self._deliver_rest(stop)
        return self._metrics(at_end=True)

    def _take_in(self) -> bool:
        """Take in some of what is outside the store; whether there was anything."""
        if self._connections.blocking:
            # Nobody knows when the next row comes: it must not keep back what others gave.
            self._commit()
            self._finish()
        return self._connections.take_in()

    def _deliver_rest(self, stop: threading.Event) -> None:
        """Deliver what has been committed; a run that is stopped waits for no sink that fails."""
        if stop.is_set():
            while self._connections.deliver():
                pass
        else:
            self._connections.drain(stop)

    def _tick(self, positions: Mapping[TopicPartition, int], *, at_end: bool) -> bool:
        """Look at the clock where that is due; whether it had an effect."""
        tick = self._ticker.due(self._reader, at_end=at_end)
        if tick is None:
            return False
        self._take(tick, positions)
        return True

    def _take(self, tick: Tick, positions: Mapping[TopicPartition, int]) -> None:
        """Let a tick have its effect between two steps, and write down where that was."""
        self._epochs.note(tick, positions)
        self._topology.tick(tick)
        self._uncommitted = True

    def _full(self) -> bool:
        topology = self._topology
        return topology.outputs.size_bytes >= EPOCH_BYTES or topology.states.full

    def _commit_if_due(self) -> None:
        """Between two steps: finish the commit that has come out, begin the one that is due.

        Where the one before it is still being written, the epoch goes on for a while: to wait for
        the disk is of no use, but a crash must not undo too much.
        """
        waited_s = self._clock.monotonic() - self._due
        if not self._epochs.busy:
            self._finish()
        elif waited_s < _PATIENCE * self._epoch_s and not self._full():
            return
        if waited_s >= 0 or self._full():
            self._commit()

    def _idle(self) -> None:
        """The input is dry: commit, but not more often than epochs are due, and wait."""
        rest = self._due - self._clock.monotonic()
        if self._uncommitted and rest <= 0:
            self._commit()
            self._finish()
        if not self._connections.deliver():
            self._reader.wait(min(rest, _WAIT_S) if self._uncommitted else _WAIT_S)

    def _commit(self) -> None:
        """Begin to commit what was done since the last time."""
        if self._uncommitted:
            self._finish()
            metrics = None if self._on_progress is None else self._metrics()
            begun = _Begun(self._topology.outputs.record_count, metrics)
            self._epochs.commit(self._topology, self._reader.positions)
            self._begun = begun
            self._uncommitted = False
            # Counted from a commit that wrote something: the first row after a pause, however
            # short, is committed at once.
            self._due = self._clock.monotonic() + self._epoch_s
            if not self._epochs.busy:
                self._finish()

    def _finish(self) -> bool:
        """Wait for the commit that was begun, deliver, and tell; whether there was one."""
        begun, self._begun = self._begun, None
        if begun is None:
            return False
        self._epochs.finish()
        self._records_out += begun.record_count
        self._connections.deliver()
        if self._on_progress is not None and begun.metrics is not None:
            self._on_progress(self._as_of_now(begun.metrics))
        return True

    def _metrics(self, *, at_end: bool = False) -> Metrics:
        positions = self._reader.positions
        ends = {topic: self._store.offsets(topic) for topic in {each.topic for each in positions}}
        lag = sum(
            ends[place.topic][place.partition].end - offset for place, offset in positions.items()
        )
        level = self._topology.level
        metrics = Metrics(
            epochs=0,
            records_in=self._topology.row_count,
            records_out=0,
            late=self._topology.late_count,
            dead_letters=self._topology.dead_letter_count,
            lag=lag,
            watermark_ms=None if level == BEFORE_TIME else level,
            operators=tuple(self._topology.metrics()),
            source_lag_bytes=self._connections.source_lag_bytes(now=at_end),
        )
        return self._as_of_now(metrics)

    def _as_of_now(self, metrics: Metrics) -> Metrics:
        """The metrics with what changes when a commit is finished."""
        return replace(
            metrics,
            epochs=self._epochs.checkpoint.epoch - self._first_epoch,
            records_out=self._records_out,
            epoch_s=self._epochs.commit_s,
            taken_in=self._connections.taken,
            sink_lag=self._connections.sink_lag,
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from running for one step.

    Thousands of rows are made in it that live until its end, so collections would look at them
    again and again and find nothing. What a user function leaves in cycles is found right after the
    step. Where the collector is off, it stays off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Interrupt(threading.Event):
    """An event that a signal handler may set.

    A plain one may be locked by the thread that the handler interrupts, and it waits for the lock.
    """

    def __init__(self) -> None:
        super().__init__()
        self._happened = False
        self._told: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._happened

    def set(self) -> None:
        self._happened = True
        self._told.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._happened:
            with suppress(Empty):
                self._told.get(timeout=timeout)
        return self._happened


@contextmanager
def _interruptible(stop: threading.Event | None) -> Iterator[threading.Event]:
    """The event that ends the loop. Without one of the caller's, Ctrl-C sets it.

    The step under way is finished and its epoch committed; a second Ctrl-C interrupts at once,
    which is safe too: what has not been committed is done again by the next run.
    """
    if stop is not None or threading.current_thread() is not threading.main_thread():
        yield stop or threading.Event()
        return
    event = _Interrupt()
    former = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)
