"""Processes that are cheap to start, so that many can be killed: forked from one that waits.

    with Zygote() as zygote, zygote.spawn("appends", path, 7) as child:
        child.hear()
        child.kill()

The zygote has imported everything and opened nothing. A child runs a function of kill_roles.py, or
of another module with `ROLES`, with a store of its own and reports numbers through a pipe, which
ends when the child does. It costs a
fork and the opening of a store: some milliseconds instead of the start of an interpreter.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Self

_REPORT = struct.Struct("<4q")
Report = tuple[int, ...]
READY: Report = (-1, 0, 0, 0)
TIMEOUT = 200
"""Seconds a child lives at most: one that stands still says where, and its parent goes on."""
FAILED = -2
"""First number of a report that is followed by the text of an exception."""


class Child:
    """A process that works until it is killed, or done."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe
        self.reports: list[Report] = []
        """All that was heard so far."""

    def hear(self, count: int = 1) -> list[Report]:
        """Wait for that many reports; fewer only when the child has ended."""
        heard: list[Report] = []
        while len(heard) < count:
            raw = self._read(_REPORT.size)
            if len(raw) < _REPORT.size:
                break
            report = _REPORT.unpack(raw)
            if report[0] == FAILED:
                raise AssertionError(f"a child failed:\n{self._read(report[1]).decode()}")
            heard.append(report)
        self.reports += heard
        return heard

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length and (more := os.read(self._pipe, length - len(data))):
            data += more
        return data

    def kill(self) -> list[Report]:
        """End it if it has not ended, wait for that, and return all it has reported."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.hear(1 << 40)
        return self.reports

    def close(self) -> None:
        """Forget it."""
        os.close(self._pipe)


class Zygote:
    """The process that is forked. A context manager.

    Args:
        roles: Name of the module that says what children do.
    """

    def __init__(self, roles: str = "kill_roles") -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(theirs.fileno()), roles],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    @contextlib.contextmanager
    def spawn(self, role: str, path: Path, seed: int, *numbers: int) -> Iterator[Child]:
        """A child in that role, ready; killed at the end if it still lives."""
        reader, writer = os.pipe()
        order = json.dumps([role, str(path), seed, *numbers]).encode()
        socket.send_fds(self._socket, [order], [writer])
        os.close(writer)
        child = Child(int(self._socket.recv(64)), reader)
        try:
            assert [READY] == child.hear(), f"{role} did not start"
            child.reports.clear()
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()  # which ends the process
        self._process.wait(timeout=60)


def tell(pipe: int, *numbers: int) -> None:
    """In a child: report up to four numbers."""
    os.write(pipe, _REPORT.pack(*numbers, *[0] * (4 - len(numbers))))


def _serve(channel: socket.socket, module: str) -> None:
    roles = importlib.import_module(module).ROLES  # the parent needs none of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    while True:
        order, pipes, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not order:
            return
        pid = os.fork()
        if pid == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(roles, pipes[0], order)
        os.close(pipes[0])
        channel.send(b"%d" % pid)


def _run(roles: dict[str, object], pipe: int, order: bytes) -> NoReturn:
    role, *arguments = json.loads(order)
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    code = 1
    try:
        run = roles[role]
        assert callable(run)
        run(pipe, *arguments)
        code = 0
    except BaseException:
        text = traceback.format_exc().encode()
        os.write(pipe, _REPORT.pack(FAILED, len(text), 0, 0) + text)
    finally:
        os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        _serve(inherited, sys.argv[2])
