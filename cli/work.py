"""Run a command for each job of a queue, several at a time; its exit code settles the job.

The commands get a process group of their own, so that Ctrl-C in a terminal reaches only us: what
runs is finished, and acked or given back as it deserves.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import click

from millstream import FencedError, Job, MillstreamError, Queue, parse_duration_ms

from .signals import StopSignals

_WAIT_SECONDS: Final = 1.0
"""How long a thread waits for a job before it looks whether it shall stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOptions:
    """What to run, and how often."""

    command: tuple[str, ...]
    parallel: int
    count: int | None
    at_end: bool
    """Whether to stop when there is no job."""
    retry_ms: int


@dataclass(slots=True)
class WorkDone:
    """How it went."""

    acked: int = 0
    failed: int = 0
    error: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def parse_delay(text: str) -> int:
    """Milliseconds of a duration; "0" is none.

    >>> parse_delay("0"), parse_delay("2s")
    (0, 2000)
    """
    return parse_duration_ms(text)


class Work:
    """Jobs of `source`, a command for each."""

    def __init__(self, source: Queue, options: WorkOptions, *, say: Callable[[str], None]) -> None:
        self._source = source
        self._options = options
        self._say = say
        self._done = WorkDone()
        self._left = options.count
        """Jobs that may still be begun; None: any number."""
        self._working = 0
        """Threads that have not ended."""
        self._running: set[Job] = set()
        self._ended = threading.Event()

    def run(self, stop: StopSignals) -> WorkDone:
        """Work until told to stop, or there is nothing left to do.

        Raises:
            MillstreamError: The queue failed; what was running has been settled, or comes again.
            click.ClickException: The command cannot be run.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(stop,), daemon=True)
            for _ in range(self._options.parallel)
        ]
        renewer = threading.Thread(target=self._renew, daemon=True)
        self._working = len(threads)
        for thread in (renewer, *threads):
            thread.start()
        stop.wait()
        if self._working:
            self._say("finishing what runs; once more to stop at once")
        for thread in threads:
            thread.join()
        self._ended.set()
        renewer.join()
        if self._done.error is not None:
            raise self._done.error
        return self._done

    def _guarded(self, stop: StopSignals) -> None:
        try:
            self._loop(stop)
        except Exception as error:  # raised by `run`, once all threads have ended
            with self._done.lock:
                self._done.error = self._done.error or error
            self._ended.set()
        with self._done.lock:
            self._working -= 1
            if not self._working:
                stop.set()

    def _loop(self, stop: StopSignals) -> None:
        timeout = 0.0 if self._options.at_end else _WAIT_SECONDS
        while not (stop.is_set() or self._ended.is_set()) and self._begin():
            job = self._source.get(timeout)
            if job is not None:
                self._do(job)
                continue
            self._put_back()
            if self._options.at_end:
                return

    def _begin(self) -> bool:
        """Take one of the jobs that may still be begun."""
        with self._done.lock:
            if self._left is None:
                return True
            self._left -= 1
            return self._left >= 0

    def _put_back(self) -> None:
        with self._done.lock:
            if self._left is not None:
                self._left += 1

    def _do(self, job: Job) -> None:
        try:
            code = self._run(job)
        except (OSError, ValueError) as error:
            # Not the job's fault: without the command no job can be done.
            job.nack()
            command = self._options.command[0]
            raise click.ClickException(f"cannot run {command!r}: {error}") from error
        try:
            if code == 0:
                job.ack()
            else:
                job.nack(self._options.retry_ms)
        except FencedError as error:
            self._say(f"{_place(job)}: {error.message}")
        if code:
            self._say(f"{_place(job)}: exit code {code}, delivery {job.deliveries}")
        with self._done.lock:
            self._done.acked += code == 0
            self._done.failed += code != 0

    def _run(self, job: Job) -> int:
        value = job.value or b""
        arguments = [os.fsencode(part) for part in self._options.command]
        on_input = not any(b"{}" in part for part in arguments)
        arguments = [
            part.replace(b"{key}", job.key or b"").replace(b"{}", value) for part in arguments
        ]
        if any(b"\0" in part for part in arguments):
            self._say(f"{_place(job)}: an argument cannot hold a NUL byte")
            return 1
        process = subprocess.Popen(  # noqa: S603 - to run the user's command is what this is for
            arguments,
            stdin=subprocess.PIPE if on_input else subprocess.DEVNULL,
            env=os.environb | _environment(job),
            process_group=0,
        )
        feeder = threading.Thread(target=_feed, args=(process, value), daemon=True)
        if on_input:
            feeder.start()
        with self._done.lock:
            self._running.add(job)
        try:
            return process.wait()
        finally:
            with self._done.lock:
                self._running.discard(job)

    def _renew(self) -> None:
        """Keep the leases of jobs whose commands run."""
        while not self._ended.wait(self._source.visibility_ms / 3000):
            with self._done.lock:
                running = [job for job in self._running if job.state == "leased"]
            try:
                self._source.extend(*running)
            except MillstreamError as error:
                self._say(str(error))  # the job says so, too, when it is to be settled


def _feed(process: subprocess.Popen[bytes], value: bytes) -> None:
    """Give the value to a command that reads it, or part of it."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it need not read to the end
        process.stdin.write(value)


def _environment(job: Job) -> dict[bytes, bytes]:
    values = {
        "TOPIC": job.topic.encode(),
        "PARTITION": b"%d" % job.partition,
        "OFFSET": b"%d" % job.offset,
        "KEY": (job.key or b"").replace(b"\0", b""),
        "TIMESTAMP_MS": b"%d" % job.timestamp_ms,
        "DELIVERIES": b"%d" % job.deliveries,
    }
    return {f"MILLSTREAM_{name}".encode(): value for name, value in values.items()}


def _place(job: Job) -> str:
    return f"{job.topic}/{job.partition} offset {job.offset}"
