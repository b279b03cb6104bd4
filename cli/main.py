"""`millstream`: the root command, and the one place where errors become exit codes.

0    done; also: the end was reached, SIGTERM was drained, the reader of our output went away
1    error while running
2    wrong usage
3    locked or busy: try again
4    corrupt data
5    not found: store, topic, group or offset
124  timeout without the wished result
130  SIGINT            143  second SIGTERM
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, NoReturn

import click

from millstream import (
    BackpressureTimeoutError,
    ConflictError,
    DataError,
    FormatVersionError,
    LockedError,
    MillstreamError,
    OffsetOutOfRangeError,
    RecordError,
    TopicExistsError,
    UnknownGroupError,
    UnknownPipelineError,
    UnknownTopicError,
    UsageError,
)

from .command import Group
from .settings import Settings
from .signals import EXIT_SIGINT

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_BUSY: Final = 3
EXIT_CORRUPT: Final = 4
EXIT_NOT_FOUND: Final = 5
EXIT_CONFLICT: Final = 6

# The first class that matches decides, so the special ones stand before their bases.
_EXIT_CODES: Final[Sequence[tuple[type[BaseException], int]]] = (
    (UnknownTopicError, EXIT_NOT_FOUND),
    (UnknownGroupError, EXIT_NOT_FOUND),
    (UnknownPipelineError, EXIT_NOT_FOUND),
    (OffsetOutOfRangeError, EXIT_NOT_FOUND),
    (TopicExistsError, EXIT_ERROR),
    (UsageError, EXIT_USAGE),
    (LockedError, EXIT_BUSY),
    (BackpressureTimeoutError, EXIT_BUSY),
    (RecordError, EXIT_ERROR),
    (FormatVersionError, EXIT_ERROR),
    (DataError, EXIT_CORRUPT),
    (ConflictError, EXIT_CONFLICT),
)

_HELP: Final = """Streams without a server: an embedded log and stream processor.

\b
Examples:
  printf 'a\\nb\\nc\\n' | millstream produce letters
  millstream consume letters -e                      print all, then exit
  millstream tail letters                            the last ten, then follow
  millstream consume letters -J -e | millstream produce copy -J
  millstream process app:pipeline --until end
  millstream groups lag billing
  millstream demo                                    real data, and a kill -9

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 error, 2 usage, 3 locked,
4 corrupt data, 5 not found, 6 conflict, 124 timeout, 130 interrupted.
"""


@click.group(cls=Group, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="millstream", message="%(prog)s %(version)s")
def cli() -> None:
    """See _HELP."""


cli.lazy = MappingProxyType(
    {
        "produce": "produce:produce",
        "consume": "consume:consume",
        "tail": "consume:tail",
        "topics": "topics:topics",
        "groups": "groups:groups",
        "queue": "queue:queue",
        "process": "process:process",
        "graph": "pipelines:graph",
        "checkpoints": "pipelines:checkpoints",
        "fork": "pipelines:fork",
        "diff": "pipelines:diff",
        "state": "state:state",
        "dump": "inspect:dump",
        "verify": "inspect:verify",
        "compact": "upkeep:compact",
        "retention": "upkeep:retention",
        "repair": "inspect:repair",
        "doctor": "doctor:doctor",
        "query": "query:query",
        "export": "transfer:export",
        "import": "transfer:import_records",
        "metrics": "metrics:metrics",
        "check": "check:check",
        "bench": "bench:bench",
        "backup": "backup:backup",
        "restore": "backup:restore",
        "config": "about:config",
        "demo": "demo:demo",
        "version": "about:version",
    }
)


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Prints errors to stderr; raises nothing."""
    settings = Settings()
    try:
        result = cli.main(
            list(arguments), prog_name="millstream", standalone_mode=False, obj=settings
        )
        sys.stdout.flush()
    except click.Abort:
        return EXIT_SIGINT
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        click.echo(f"millstream: {error.format_message()}", err=True)
        return error.exit_code
    except BrokenPipeError:
        return EXIT_OK
    except Exception as error:
        return _report(error, verbose=settings.verbose)
    return result if isinstance(result, int) else EXIT_OK


def _report(error: Exception, *, verbose: bool) -> int:
    expected = isinstance(error, MillstreamError | OSError)
    if verbose or not expected:
        traceback.print_exception(error)
    else:
        click.echo(f"millstream: {_message(error)}", err=True)
        for note in (*getattr(error, "__notes__", ()), *_next_steps(error)):
            click.echo(f"millstream: {note}", err=True)
    return _exit_code(error)


def _exit_code(error: Exception) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_ERROR)


def _message(error: Exception) -> str:
    """What the error says; where that is a call in Python, the command that does the same."""
    if isinstance(error, UnknownTopicError) and error.topic and error.partition is None:
        return (
            f"there is no topic {error.topic!r}: `millstream topics ls` lists them,"
            f" `millstream topics create {error.topic}` makes one"
        )
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
    if full and not isinstance(error, MillstreamError):
        return "cannot write the output: No space left on device"
    return str(error)


def _next_steps(error: Exception) -> list[str]:
    """What to do about damage in a topic, where the error does not say so itself."""
    if not isinstance(error, DataError) or _exit_code(error) != EXIT_CORRUPT:
        return []
    if error.topic is None or "`millstream" in str(error):
        return []
    return ["`millstream verify --explain` says what is lost, `millstream repair` saves the rest"]


def run() -> NoReturn:
    """Entry point of the console script."""
    _occupy_standard_descriptors()
    sys.exit(main(sys.argv[1:]))


def _occupy_standard_descriptors() -> None:
    """Open /dev/null where the caller closed stdin, stdout or stderr.

    Else the next file opened would take the number, and output would be written into the store.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
