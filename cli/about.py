"""`millstream version` and `millstream config`: what is running, and with which settings."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed_version

import click

from .command import Command, examples
from .output import print_object, print_rows
from .settings import settings


@click.command(cls=Command, epilog=examples("millstream version", "millstream version --json"))
def version() -> None:
    """Print the versions of Millstream and its parts."""
    versions = {"millstream": installed_version("millstream"), "python": platform.python_version()}
    for package in ("apsw", "click", "lz4", "msgspec", "xxhash", "zstandard"):
        versions[package] = installed_version(package)
    versions["platform"] = platform.platform()
    print_object(versions, settings().mode)


@click.command(cls=Command, epilog=examples("MILLSTREAM_DIR=/data millstream config"))
def config() -> None:
    """Show the settings in force and where each comes from."""
    current = settings()
    rows = [
        {"setting": name, "value": value, "origin": current.origin(name)}
        for name, value in (("dir", current.directory), ("output", current.output))
    ]
    print_rows("settings", rows, ["setting", "value", "origin"], current.mode)
