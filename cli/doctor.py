"""`millstream doctor`: what is wrong with a store or the machine under it, and what to do."""

from __future__ import annotations

from typing import Final

import click

from millstream import Diagnosis, diagnose

from .command import Command, examples
from .output import Cell, print_rows
from .settings import settings

EXIT_FOUND: Final = 1
EXIT_CORRUPT: Final = 4
_COLUMNS: Final = ("level", "check", "message", "remedy", "path")
_DAMAGE: Final = frozenset({"catalog", "logs", "files"})
_RANK: Final = {"error": 0, "warning": 1, "info": 2, "ok": 3}


@click.command(
    cls=Command,
    short_help="Check the store and the machine under it.",
    epilog=examples("millstream doctor", "millstream doctor --json"),
)
def doctor() -> int:
    """Look at file system, space, rights, syncs, limits, clock, catalog and logs; say what to do.

    Nothing is changed; a small file is written and removed to see how long a sync takes. Exit code
    0 if all is well, 1 if there are warnings or errors, 4 if data are damaged.
    """
    current = settings()
    current.require_store()
    found = diagnose(current.directory)
    ranked = sorted(found, key=lambda each: _RANK[each.level])
    rows: list[dict[str, Cell]] = [each._asdict() for each in ranked]
    print_rows("findings", rows, _COLUMNS, current.mode)
    return _exit_code(found)


def _exit_code(found: list[Diagnosis]) -> int:
    if any(each.level == "error" and each.check in _DAMAGE for each in found):
        return EXIT_CORRUPT
    return EXIT_FOUND if any(each.level in {"error", "warning"} for each in found) else 0
