"""`python -m millstream` is the command `millstream`."""

from __future__ import annotations

import importlib

if __name__ == "__main__":
    # By name: the log does not know the command line, which stands above it.
    importlib.import_module("millstream.cli.main").run()
