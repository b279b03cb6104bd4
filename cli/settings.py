"""What every command knows: the store's directory, how to print, how loud. And how to open it.

Order of precedence: option after the command, option before it, environment, default.
"""

from __future__ import annotations

import os
import sys
from typing import Final, Literal

import click

import millstream
from millstream import Store

from .output import Mode, choose_mode, print_document

DIRECTORY_DEFAULT: Final = "./millstream-data"
OUTPUT_MODES: Final = ("auto", "table", "json", "jsonl", "csv", "tsv")


_PARTS: Final = ("catalog.db", "topics", "state", "source", "sink", "journal")
"""One of them is in every store. Without the first it has lost its catalog: opening says so."""


class NotFoundError(click.ClickException):
    """No such store or pipeline; the message says what to do."""

    exit_code = 5


class Settings:
    """Global options, and where each value came from.

    >>> Settings().origin("output")
    'default'
    """

    def __init__(self) -> None:
        self._values: dict[str, object] = {}

    def take(self, name: str, value: object) -> None:
        """Remember an option given on the command line; the later one wins."""
        self._values[name] = value

    def origin(self, name: str) -> str:
        """Where the value of `name` comes from: option, environment or default."""
        if name in self._values:
            return "option"
        return "environment" if self._environment(name) else "default"

    @property
    def directory(self) -> str:
        """Directory of the store."""
        given = self._values.get("dir") or self._environment("dir")
        return str(given or DIRECTORY_DEFAULT)

    @property
    def output(self) -> str:
        """Requested output mode, "auto" included."""
        return str(self._values.get("output") or "auto")

    @property
    def mode(self) -> Mode:
        """Output mode for lists on this stdout."""
        return choose_mode(self.output, sys.stdout)

    @property
    def quiet(self) -> bool:
        """Print nothing but data and errors."""
        return bool(self._values.get("quiet"))

    @property
    def verbose(self) -> bool:
        """Print more on stderr, tracebacks included."""
        return bool(self._values.get("verbose"))

    def _environment(self, name: str) -> str | None:
        return os.environ.get("MILLSTREAM_DIR") if name == "dir" else None

    def say(self, text: str) -> None:
        """Tell the human something on stderr, unless --quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def done(self, text: str, **fields: object) -> None:
        """Say what was done; with --output json or jsonl print it as an object, too."""
        if self.mode in {"json", "jsonl"}:
            print_document(fields, self.mode)
        self.say(text)

    def open(
        self,
        *,
        read_only: bool = False,
        create: bool = False,
        durability: Literal["sync", "interval", "os"] = "sync",
    ) -> Store:
        """Open the store of the command.

        Args:
            read_only: Change nothing, not even locks; works beside live writers.
            create: Make the directory if it is not there.
            durability: When appends are acknowledged.

        Raises:
            NotFoundError: There is none and `create` is False.
        """
        if not create:
            self.require_store()
        return millstream.open(self.directory, read_only=read_only, durability=durability)

    def require_store(self) -> None:
        """See that there is a store, be it a damaged one.

        Raises:
            NotFoundError: There is none.
        """
        directory = self.directory
        if any(os.path.exists(os.path.join(directory, name)) for name in _PARTS):
            return
        if os.path.isdir(directory) and not os.access(directory, os.X_OK):
            raise click.ClickException(f"this user may not enter {directory}")
        raise NotFoundError(
            f"no store in {directory}; name one with --dir or $MILLSTREAM_DIR, "
            "or create one by `millstream produce TOPIC`"
        )


def settings() -> Settings:
    """The settings of the running command."""
    return click.get_current_context().ensure_object(Settings)
