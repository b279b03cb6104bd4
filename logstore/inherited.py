"""SQLite connections in the child of a fork: they are the parent's, and stay untouched.

Not only must the child not use them. Closing one, or freeing it, rolls back: the journal that the
parent's open transaction needs after a crash would be removed, or played back under it. So in a
child they are never freed; that is all that is done about them here. Who opens and closes them is
`database.py`.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final
from weakref import ref

_open: Final[dict[int, ref[object]]] = {}
"""By their ids, which new ones take over from those that are gone. Not a WeakSet: that removes what
is gone in a function of Python, where a Ctrl-C would be lost."""
_inherited: Final[list[object]] = []
"""In a child: those that were open at the fork."""


def watch(connection: object) -> None:
    """From now on a fork leaves `connection` to the parent."""
    _open[id(connection)] = ref(connection)


def is_inherited(connection: object) -> bool:
    """Whether this process is the child of the one that opened `connection`."""
    return any(each is connection for each in _inherited)


def _keep() -> None:
    for connection in [each() for each in _open.values()]:
        if connection is not None and not is_inherited(connection):
            _inherited.append(connection)
            # When the interpreter ends, it frees what modules refer to, but for this reference.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(after_in_child=_keep)
