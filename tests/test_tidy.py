"""The source keeps the rules that no linter checks."""

from __future__ import annotations

import ast
import re
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


PYTHON = files("*.py", folders=(*SHIPPED, "tests", "benchmarks", "examples", "tools"))
TEXT = [
    *PYTHON,
    *files("*.md", folders=("docs", "benchmarks")),
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("Makefile", "pyproject.toml", ".ci/run", ".gitignore")),
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_a_file_has_at_most_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_a_function_has_at_most_70_lines(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)}

    assert {} == {function: lines for function, lines in lengths.items() if lines > 70}


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_source_is_ascii(path: Path) -> None:
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("path", files("*.py", folders=SHIPPED), ids=name)
def test_a_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))

    assert docstring is not None
    assert docstring.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("path", files("*.py", folders=SHIPPED), ids=name)
def test_folders_meet_at_the_public_facade_only(path: Path) -> None:
    """Relative imports inside a folder, public modules across: the code reads the same anywhere."""
    foreign = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            foreign |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            foreign.add(node.module)
    ours = {module for module in foreign if module.split(".")[0] in {"millstream", *SHIPPED}}

    assert ours <= PUBLIC_MODULES


# Put together from pieces, because this file is searched too.
UNWANTED = {
    "left over": "FIX" + "ME|TO" + "DO|X" + "XX",
    "path of one machine": r"(?<![\w.])/(?:work|tm" + r"p|home|root|Users|opt)/\w",
    "package index": "py" + r"pi\.org|python" + "hosted",
}


@pytest.mark.parametrize("path", TEXT, ids=name)
@pytest.mark.parametrize("kind", UNWANTED)
def test_nothing_unfinished_or_private_is_left_in(path: Path, kind: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        f"{number}: {line}"
        for number, line in enumerate(lines, 1)
        if re.search(UNWANTED[kind], line)
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
