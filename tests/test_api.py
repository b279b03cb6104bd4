"""The public surface is declared, complete and light to import."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import ModuleType

import pytest

FACADES = ("millstream", "millstream.processor")
HEAVY = ("asyncio", "click", "duckdb", "numpy", "prometheus_client", "pyarrow", "rich", "zstandard")
ASIDE = ("email", "importlib.metadata", "statistics", "tarfile", "zipfile")
"""Of the standard library, for what few do."""


def unlisted_names(module: ModuleType) -> list[str]:
    """Names a user would see that are neither in `__all__` nor another name of what is."""
    listed = {id(getattr(module, name)) for name in module.__all__}
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and id(value) not in listed
    ]


@pytest.mark.parametrize("facade", FACADES)
def test_all_is_sorted_and_holds_every_public_name(facade: str) -> None:
    module = importlib.import_module(facade)

    assert sorted(module.__all__) == list(module.__all__)
    assert [] == unlisted_names(module)


@pytest.mark.parametrize("facade", FACADES)
def test_every_public_name_is_documented(facade: str) -> None:
    module = importlib.import_module(facade)
    public = {name: getattr(module, name) for name in module.__all__}
    ours = {
        name: value
        for name, value in public.items()
        if (getattr(value, "__module__", None) or "").startswith("millstream")
    }

    assert [] == [name for name, value in ours.items() if not value.__doc__]


def test_import_loads_nothing_heavy() -> None:
    """Each of these costs 20 to 200 ms; it is loaded when first used."""
    program = "import json, sys, millstream; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, timeout=60
    ).stdout
    modules = json.loads(output)

    assert set() == {name.split(".")[0] for name in modules} & set(HEAVY)
    assert set() == set(modules) & set(ASIDE)
