"""What belongs to the process that made it."""

from __future__ import annotations

from typing import NoReturn


class Handle:
    """Refuses to be copied and pickled, and says what to do instead.

    A copy of a producer would close it when the copy goes, and Python's own message names a lock
    somewhere inside.
    """

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(  # what Python raises, and what those expect who try to pickle
            f"cannot copy or pickle {self!r}: it is of this process. Open the store by its path"
            " where it is needed, and pass records or values"
        )
