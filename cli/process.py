"""`millstream process`: import a pipeline and run it over the store. No semantics of its own."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

import millstream
from millstream import MillstreamError, RecordError, parse_duration_ms
from millstream.processor import Metrics, Pipeline

from .command import Command, examples
from .format_string import rfc3339
from .progress import StatusLine
from .settings import settings
from .signals import StopSignals


@click.command(
    cls=Command,
    short_help="Run a pipeline, exactly once.",
    epilog=examples(
        "millstream process app:pipeline                 run until stopped",
        "millstream process app:pipeline --until end     stop when caught up",
        "millstream process app:pipeline --explain       show the plan, run nothing",
    ),
)
@click.argument("target", metavar="MODULE:PIPELINE")
@click.option("--until", type=click.Choice(["end"]), help="Stop when all input has been read.")
@click.option(
    "--on-end",
    type=click.Choice(["hold", "flush"]),
    default="hold",
    show_default=True,
    help="With --until end: keep open windows for the next run, or close them all.",
)
@click.option("--batch-records", type=click.IntRange(min=1), help="Most records per step.")
@click.option("--epoch", metavar="DURATION", help="Commit about so often: 100ms, 1s.")
@click.option("--explain", is_flag=True, help="Print the plan and exit.")
@click.option("--progress/--no-progress", default=None, help="A status line on stderr.")
def process(target: str, explain: bool, progress: bool | None, **options: str | int | None) -> int:
    """Run the pipeline named PIPELINE in the Python module MODULE, exactly once.

    The module is looked for in the current directory first. PIPELINE is a `Pipeline`, or a
    function without arguments that returns one. The run goes on where the last one stopped,
    however it did; only one process can run a pipeline at a time (exit code 3 otherwise).

    Ctrl-C or SIGTERM finishes the running epoch and exits; a second one exits at once, and the
    next run does again what was not committed.
    """
    current = settings()
    pipeline = load_pipeline(target)
    if explain:
        click.echo(pipeline.explain())
        return 0
    status = StatusLine(False if current.quiet else progress)

    def show(metrics: Metrics) -> None:
        if status.due():
            status.show(_summary(metrics))

    epoch = options["epoch"]
    with StopSignals() as stop, current.open() as store:
        try:
            metrics = pipeline.run(
                store,
                until="end" if options["until"] else None,
                on_end="flush" if options["on_end"] == "flush" else "hold",
                batch_records=_int_or_none(options["batch_records"]),
                epoch_ms=100 if epoch is None else parse_duration_ms(str(epoch)),
                stop=stop,
                on_progress=show,
            )
        except RecordError as error:
            if error.__cause__ is not None:
                # The message says which record; the author of the function needs the line, too.
                _print_user_frames(error.__cause__)
            raise
        current.say(f"{pipeline.name}: {_summary(metrics)}")
        return stop.exit_code


def _int_or_none(value: str | int | None) -> int | None:
    return None if value is None else int(value)


def _summary(metrics: Metrics) -> str:
    text = (
        f"{metrics.records_in} records in, {metrics.records_out} out, {metrics.late} late, "
        f"{metrics.dead_letters} dead letters, {metrics.epochs} epochs, lag {metrics.lag}"
    )
    if metrics.watermark_ms is None:
        return text
    return f"{text}, watermark {rfc3339(metrics.watermark_ms)}"


def load_pipeline(target: str) -> Pipeline:
    """Import "module:attribute". Where the module's code fails, print where.

    Raises:
        click.UsageError: There is no such module or attribute, or it is no pipeline.
        click.ClickException: The code of the module raised.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise click.UsageError(f"{target!r} is not MODULE:PIPELINE, such as app:pipeline")
    if module_name.endswith(".py") or "/" in module_name:
        name = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise click.UsageError(f"name the module, not its file: {name}:{attribute}")
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    with _showing_faults(target):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only the module asked for: one that is missing inside it is a fault of its code.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise click.UsageError(f"there is no module {module_name!r} in {directory}") from None
        found = getattr(module, attribute, None)
        if callable(found) and not isinstance(found, Pipeline):
            found = found()
    if not isinstance(found, Pipeline):
        names = [name for name, value in vars(module).items() if isinstance(value, Pipeline)]
        hint = f"it has {', '.join(names)}" if names else "it has none"
        raise click.UsageError(f"{attribute!r} in {module_name!r} is no Pipeline; {hint}")
    return found


@contextmanager
def _showing_faults(target: str) -> Iterator[None]:
    """Show what the user's code raises by its own lines."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        _print_user_frames(error)
        if isinstance(error, MillstreamError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise click.ClickException(f"cannot load {target}: {reason}") from None


def _print_user_frames(error: BaseException) -> None:
    """Print a traceback of the user's lines alone; nothing if there are none."""
    shown = traceback.TracebackException.from_exception(error)
    not_theirs = (
        os.path.dirname(millstream.__file__),
        os.path.dirname(importlib.__file__),
        "<frozen",
    )
    frames = [frame for frame in shown.stack if not frame.filename.startswith(not_theirs)]
    shown.stack = traceback.StackSummary.from_list(frames)
    if frames or isinstance(error, SyntaxError):
        click.echo("".join(shown.format(chain=False)), err=True, nl=False)
