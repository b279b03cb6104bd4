"""Threads that append single records at once share one batch, one write and one sync.

The first thread leads: it appends and syncs what is queued, its own record first of all. Threads
that come meanwhile queue up, and when the leader is done the first of them leads the next round.
A follower costs one queue entry and one wake-up, so eight threads get several times the rate of
one although every append is durable (docs/decisions).
"""

from __future__ import annotations

import threading
from typing import Final, TypeAlias

from .batch import encode_batch
from .engine import Engine
from .errors import UsageError
from .format import CODEC_BY_NAME
from .log import Log
from .record import Headers

Row: TypeAlias = tuple[bytes | None, bytes | None, int | None, Headers]
"""value, key, timestamp in UTC ms or None for the time of the append, headers."""

ROUND_RECORDS_MAX: Final = 4096
ROUND_BYTES_MAX: Final = 1 << 20


class _Request:
    """One record on its way; `wake` is released when it is done or its thread shall lead."""

    __slots__ = ("error", "offset", "row", "timestamp_ms", "wake")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.offset = -1
        self.timestamp_ms = 0
        self.error: BaseException | None = None
        self.wake: threading.Lock | None = None


class GroupAppend:
    """Durable single appends to one partition. Thread-safe."""

    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine = engine
        self._log = log
        self._guard = threading.Lock()
        self._queue: list[_Request] = []
        self._leading = False

    def append(self, row: Row) -> tuple[int, int]:
        """Append one record durably; its offset and timestamp.

        Raises:
            UsageError: This record is not valid; others of the round are not affected.
            StorageError, PoisonedError: The round failed, for everybody in it.
        """
        request = _Request(row)
        with self._guard:
            self._queue.append(request)
            if self._leading:
                wake = request.wake = threading.Lock()
                wake.acquire()
            else:
                self._leading = True
                wake = None
        if wake is not None:
            wake.acquire()
        if request.offset < 0 and request.error is None:
            self._lead(request)
        if request.error is not None:
            raise request.error
        return request.offset, request.timestamp_ms

    def _lead(self, own: _Request) -> None:
        """Serve one round, which begins with the leader's own record, and hand over."""
        group: list[_Request] = []
        try:
            with self._guard:
                group = self._take()
            self._serve(group)
        except BaseException as error:
            # Also a KeyboardInterrupt: nobody of this round may be left waiting.
            for request in group:
                if request.offset < 0:
                    request.error = request.error or error
            if not isinstance(error, Exception):
                own.error = None
                raise
        finally:
            with self._guard:
                successor = self._queue[0] if self._queue else None
                self._leading = successor is not None
            for request in group:
                if request.wake is not None and request is not own:
                    request.wake.release()
            if successor is not None and successor.wake is not None:
                successor.wake.release()

    def _take(self) -> list[_Request]:
        """Cut a round from the front of the queue; at least one record."""
        queue = self._queue
        if len(queue) == 1:
            self._queue = []
            return queue
        size = 0
        count = 0
        for request in queue[:ROUND_RECORDS_MAX]:
            value, key, _, headers = request.row
            size += len(value or b"") + len(key or b"")
            size += sum(len(name) + len(data or b"") for name, data in headers)
            if count and size > ROUND_BYTES_MAX:
                break
            count += 1
        self._queue = queue[count:]
        return queue[:count]

    def _serve(self, group: list[_Request]) -> None:
        try:
            self._write(group)
        except UsageError:
            if len(group) == 1:
                raise
            for request in group:  # find the wrong record, keep the others
                try:
                    self._write([request])
                except UsageError as error:
                    request.error = error

    def _write(self, group: list[_Request]) -> None:
        log, engine = self._log, self._engine
        values, keys, stamps, headers = zip(*[request.row for request in group], strict=True)
        timestamps_ms = None
        if any(stamp is not None for stamp in stamps):
            now_ms = engine.clock.now_ms()
            timestamps_ms = [now_ms if stamp is None else stamp for stamp in stamps]
        encoded = encode_batch(
            values,
            None if not any(key is not None for key in keys) else keys,
            timestamps_ms,
            headers if any(headers) else None,
            codec=CODEC_BY_NAME[log.config.compression],
        )
        (base_offset,), append_ms = engine.append_at(((log, encoded),))
        engine.acknowledge(((log, base_offset + len(group)),), "sync")
        for number, request in enumerate(group):
            request.timestamp_ms = append_ms if timestamps_ms is None else timestamps_ms[number]
            request.offset = base_offset + number
