"""The source keeps the rules that no linter checks."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = ("logstore", "processor", "cli")
PUBLIC_MODULES = {
    "millstream",
    "millstream.aio",
    "millstream.inspect",
    "millstream.processor",
    "millstream.prometheus",
    "millstream.sql",
    "millstream.testing",
}
"""What one folder may import from another."""


def files(*patterns: str, folders: tuple[str, ...]) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for pattern in patterns
        for path in (ROOT / folder).rglob(pattern)
    )


MODULES = frozenset(files("*.py", folders=SHIPPED))
PYTHON = files("*.py", folders=(*SHIPPED, "tests", "benchmarks", "examples", "tools"))
TEXT = [
    *PYTHON,
    *files("*.md", folders=("docs", "benchmarks")),
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("Makefile", "pyproject.toml", ".ci/run", ".gitignore")),
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > 70:
                yield f"{node.name}: {length} lines"


def our_imports(tree: ast.Module) -> set[str]:
    """The modules of ours that are imported by their full name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return {module for module in found if module.split(".")[0] in {"millstream", *SHIPPED}}


@pytest.fixture(scope="module")
def broken() -> dict[str, list[str]]:
    """What breaks a rule about Python files, by rule. In one go: parsing them is what takes time.

    The rules are those of the tests that take this fixture.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for path in PYTHON:
        content = path.read_bytes()
        if not content.isascii():
            found["ascii"].append(name(path))
        if (length := content.count(b"\n")) > 600:
            found["file"].append(f"{name(path)}: {length} lines")
        tree = ast.parse(content)
        found["function"] += (f"{name(path)}, {each}" for each in long_functions(tree))
        if path in MODULES:
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            if not summary.endswith((".", ":")):
                found["docstring"].append(name(path))
            if foreign := our_imports(tree) - PUBLIC_MODULES:
                found["facade"].append(f"{name(path)}: {foreign}")
    return found


def test_a_file_has_at_most_600_lines(broken: dict[str, list[str]]) -> None:
    assert [] == broken["file"]


def test_a_function_has_at_most_70_lines(broken: dict[str, list[str]]) -> None:
    assert [] == broken["function"]


def test_source_is_ascii(broken: dict[str, list[str]]) -> None:
    assert [] == broken["ascii"]


def test_a_module_says_what_it_is(broken: dict[str, list[str]]) -> None:
    assert [] == broken["docstring"]


def test_folders_meet_at_the_public_facade_only(broken: dict[str, list[str]]) -> None:
    """Relative imports inside a folder, public modules across: the code reads the same anywhere."""
    assert [] == broken["facade"]


# Put together from pieces, because this file is searched too.
UNWANTED = {
    "left over": "FIX" + "ME|TO" + "DO|X" + "XX",
    "path of one machine": r"(?<![\w.])/(?:work|tm" + r"p|home|root|Users|opt)/\w",
    "package index": "py" + r"pi\.org|python" + "hosted",
}


@pytest.mark.parametrize("kind", UNWANTED)
def test_nothing_unfinished_or_private_is_left_in(kind: str) -> None:
    unwanted = re.compile(UNWANTED[kind])
    found = [
        f"{name(path)}:{number}: {line}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if unwanted.search(line)
    ]

    assert [] == found


def test_each_markdown_page_has_one_title() -> None:
    pages = [path for path in TEXT if path.suffix == ".md"]
    titles = {name(path): page_titles(path) for path in pages}

    assert {} == {page: found for page, found in titles.items() if len(found) != 1}


def page_titles(path: Path) -> list[str]:
    text = re.sub(
        r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return re.findall(r"^# .+", text, flags=re.MULTILINE)
