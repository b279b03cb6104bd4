"""pyarrow, loaded when something of it is used first.

It takes 40 MB. Every workload is imported in each process, also where a pipeline of rows is
measured, whose peak of memory must be its own.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("pyarrow"), name)
