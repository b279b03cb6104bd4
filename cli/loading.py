"""Import a pipeline by "module:attribute", and show the user's own lines where that fails."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

import millstream
from millstream import MillstreamError
from millstream.processor import Pipeline


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
        print_user_frames(error)
        if isinstance(error, MillstreamError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise click.ClickException(f"cannot load {target}: {reason}") from None


def print_user_frames(error: BaseException) -> None:
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
