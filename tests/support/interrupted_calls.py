"""Ctrl-C at a chosen moment of those at which CPython looks for signals: at calls, and after them.

A tracer that raises between any two instructions also finds moments that do not exist, as the one
between the end of a `with` block and the release of its lock. The cyclic garbage collector stands
still meanwhile: it would call the `__del__` of what other tests have left, and an interrupt there
is told to nobody.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_TESTS = str(Path(__file__).parents[1])
_SECONDS = 30


class InterruptAt:
    """Raises KeyboardInterrupt once, at the given one of the calls made outside the tests."""

    def __init__(self, call: int) -> None:
        self.remaining = call

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if event in {"call", "c_return"} and not frame.f_code.co_filename.startswith(_TESTS):
            self.remaining -= 1
            if not self.remaining:
                sys.setprofile(None)
                raise KeyboardInterrupt

    def run(self, function: Callable[[], object]) -> None:
        """Call `function`, and interrupt it if it is its turn."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            sys.setprofile(self._profile if self.remaining > 0 else None)
            function()
        except KeyboardInterrupt:
            return
        finally:
            sys.setprofile(None)
            if collecting:
                gc.enable()


def ends(function: Callable[[], object]) -> bool:
    """Whether a call returns at all. It is made in a thread, which is left behind if not."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return not thread.is_alive()
