"""The first page keeps its promises to a newcomer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_come_before_pip_install() -> None:
    assert -1 < README.index("make demo") < README.index("make test") < README.index("pip install")


def test_the_first_example_has_twelve_lines_of_python() -> None:
    """Short enough to be read; that it runs is checked with all other pages."""
    first = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

    assert first is not None
    assert 12 == len([line for line in first.group(1).splitlines() if line.strip()])


@pytest.mark.parametrize("heading", ["Guarantees", "Benchmarks", "Map of the folders"])
def test_the_readme_has_its_parts(heading: str) -> None:
    assert f"\n## {heading}\n" in README
