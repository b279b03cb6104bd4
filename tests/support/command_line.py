"""Runs of the command line in the process of the test: most need none of their own to be seen.

The start of an interpreter that loads pipelines costs half a second, a command in this process some
milliseconds. What is about processes (signals, pipes, what is imported at the start, the terminal)
has one of its own in the tests of that.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from millstream.cli.main import main


def run_here(home: Path, *arguments: str, code: int = 0) -> str:
    """What `millstream --dir data ARGUMENTS` writes to stdout, run in that directory.

    Raises:
        AssertionError: It ended with another exit code; says what it wrote to stderr.
    """
    # Text over bytes, as the streams of a process are: commands write both.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with chdir(home), redirect_stdout(out), redirect_stderr(err), _as_a_process_begins():
        found = main(["--dir", "data", *arguments])
    said = _written(err)
    assert code == found, said
    return _written(out)


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextmanager
def _as_a_process_begins() -> Iterator[None]:
    """Forget the modules of the user afterwards: the next run shall read their files anew.

    They are not kept compiled: that tells versions of a file apart by their second and size.
    """
    known, path, compiled = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    directory = f"{Path.cwd()}/"
    sys.dont_write_bytecode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            yield
    finally:
        sys.dont_write_bytecode = compiled
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(directory):
                del sys.modules[name]
