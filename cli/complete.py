"""Shell completion of topic and group names: reads the catalog, changes nothing, never fails."""

from __future__ import annotations

from collections.abc import Callable

import click

from millstream import MillstreamError, Store

from .settings import Settings


def complete_topic(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of topics that begin with `incomplete`."""
    del parameter
    return _names(context, incomplete, lambda store: [topic.name for topic in store.topics()])


def complete_group(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of consumer groups that begin with `incomplete`."""
    del parameter
    return _names(context, incomplete, lambda store: store.groups())


def _names(
    context: click.Context, incomplete: str, names: Callable[[Store], list[str]]
) -> list[str]:
    try:
        with context.ensure_object(Settings).open(read_only=True) as store:
            return [name for name in names(store) if name.startswith(incomplete)]
    except (MillstreamError, click.ClickException):
        return []  # a shell prompt is no place for an error
