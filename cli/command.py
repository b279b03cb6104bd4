"""How commands are declared: the options they share, and groups that load them when needed."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NoReturn

import click

from .settings import OUTPUT_MODES, Settings


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value == "":  # of a variable that is not set: another store would be taken instead
        raise click.BadParameter("is empty", context, parameter)
    if value not in {None, False}:
        context.ensure_object(Settings).take(str(parameter.name), value)


def _set_no_color(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    del context, parameter
    if value:
        # One switch for click and our own tables.
        os.environ["NO_COLOR"] = "1"


SHARED_OPTIONS: Final[Sequence[click.Option]] = (
    click.Option(
        ["--dir"],
        metavar="DIR",
        type=click.Path(file_okay=False),
        expose_value=False,
        callback=_remember,
        help="Directory of the store. [env: MILLSTREAM_DIR; default: ./millstream-data]",
    ),
    click.Option(
        ["--output"],
        type=click.Choice(OUTPUT_MODES),
        expose_value=False,
        callback=_remember,
        help="How to print. [default: table on a terminal, tsv in a pipe]",
    ),
    click.Option(
        ["--json", "output"],
        flag_value="json",
        expose_value=False,
        callback=_remember,
        help="The same as --output json.",
    ),
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Print nothing but data and errors.",
    ),
    click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Say more on stderr, tracebacks included.",
    ),
    click.Option(
        ["--no-color"],
        is_flag=True,
        expose_value=False,
        callback=_set_no_color,
        help="No colours. [env: NO_COLOR]",
    ),
)
"""Taken by every command, before or after its name; the later one wins."""


class Command(click.Command):
    """A command that also takes the shared options."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own parameters, then the shared ones."""
        return [*super().get_params(ctx), *SHARED_OPTIONS]


class Group(click.Group):
    """A group of commands, some of which are imported only when they are named.

    Attributes:
        lazy: Command name to "module:attribute", the module relative to this package.
    """

    command_class: type[click.Command] | None = Command
    lazy: Mapping[str, str] = MappingProxyType({})

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own parameters, then the shared ones."""
        return [*super().get_params(ctx), *SHARED_OPTIONS]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names in the order of declaration."""
        del ctx
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command if it is a lazy one, and return it."""
        if cmd_name in self.lazy:
            module, attribute = self.lazy[cmd_name].split(":")
            command = getattr(importlib.import_module(f".{module}", __package__), attribute)
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of an unknown one say what it may be a misspelling of."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.list_commands(ctx))
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """Parse the arguments, which may print the help; as `invoke`."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            _end_unread()

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; when the reader of our output went away, end silently."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _end_unread()


def _end_unread() -> NoReturn:
    # What is still buffered has nowhere to go; the interpreter would complain at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    raise click.exceptions.Exit(0) from None


def users_topic(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """Refuse to write into a topic that Millstream keeps for itself."""
    if name.startswith("@"):
        raise click.BadParameter(f"{name!r} is Millstream's own", context, parameter)
    return name


YES: Final = click.option(
    "-y", "--yes", is_flag=True, help="Do it; without, only the plan is shown."
)
"""Of every command that takes something away for good, or moves what others rely on."""


def examples(*lines: str) -> str:
    """An epilog of examples that click does not re-wrap.

    >>> examples("millstream topics ls").splitlines()[1:]
    ['Examples:', '  millstream topics ls']
    """
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
