"""The documents are true: their code runs, their links lead somewhere, they name everything public.

Examples in docstrings print what they show. A ```python block is executed, all blocks of one page
in one namespace and one fresh directory. A
```console block is a shell session: lines after `$ ` are run, the lines below are what they print.
Blocks of any other kind (```sh, ```text) are only shown.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest

import millstream
from millstream import config, errors
from millstream.cli import main
from millstream.processor import nodes

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DOCS = {page: page.read_text(encoding="utf-8") for page in PAGES}
EVERYTHING = "\n".join(DOCS.values())


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The line number and the text of each fenced block of `language`."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    text = DOCS[page]
    return [
        (text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in fence.finditer(text)
    ]


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


FOLDERS = {"logstore": "millstream", "processor": "millstream.processor", "cli": "millstream.cli"}
WITH_EXAMPLES = [
    package if path.stem == "__init__" else f"{package}.{path.stem}"
    for folder, package in FOLDERS.items()
    for path in sorted((ROOT / folder).glob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_print_what_they_show(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for example in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(example, out=said.append)

    assert "" == "".join(said)
    assert runner.tries > 0


@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A module of its own: types declared in a page are looked up by their module's name.
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        # Blank lines in front, so that a traceback shows the line of the page. Not with the
        # __future__ imports of this file: a reader does not have them either.
        code = compile("\n" * (line - 1) + block, str(page), "exec", dont_inherit=True)
        exec(code, namespace)


@pytest.mark.parametrize("page", with_blocks("console"), ids=name)
def test_console_blocks_print_what_they_show(page: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    environment.pop("MILLSTREAM_DIR", None)
    for line, block in blocks(page, "console"):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            where = f"{name(page)}:{line}: {command}\n{done.stderr}"

            assert (expected, 0) == (done.stdout, done.returncode), where


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", DOCS[page])

    assert [] == [target for target in targets if not (page.parent / target).exists()]


def commands(
    group: click.Command, path: tuple[str, ...] = ()
) -> dict[tuple[str, ...], click.Command]:
    """Every command below `group` that is not hidden, by its words."""
    if not isinstance(group, click.Group):
        return {path: group}
    found = {}
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if command is not None and not command.hidden:
            found |= commands(command, (*path, word))
    return found


COMMANDS = commands(main.cli)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_documents_and_has_help(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]

    assert f"`{' '.join(words)}" in EVERYTHING or f"millstream {' '.join(words)}" in EVERYTHING
    assert command.help
    assert [] == [
        option.name
        for option in command.params
        if isinstance(option, click.Option) and not option.help and not option.hidden
    ]


ERRORS = [
    word
    for word, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.MillstreamError)
]


@pytest.mark.parametrize("word", ERRORS)
def test_every_error_is_in_the_documents_and_public(word: str) -> None:
    assert f"`{word}`" in EVERYTHING
    assert word in millstream.__all__


@pytest.mark.parametrize("field", [field.name for field in fields(config.TopicConfig)])
def test_every_configuration_field_is_in_the_documents(field: str) -> None:
    assert f"`{field}`" in EVERYTHING


KINDS = [
    kind
    for word in nodes.__all__
    if isinstance(kind := getattr(nodes, word), type) and issubclass(kind, nodes.Node)
]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.__subclasses__()])
def test_every_kind_of_node_is_in_the_documents_with_its_parameters(kind: type[nodes.Node]) -> None:
    page = DOCS[ROOT / "docs" / "concepts" / "elsewhere.md"]
    (row,) = re.findall(rf"^\| `{kind.__name__}` .*", page, re.MULTILINE)
    common = {"id", "label", "name", "parent", "parents"}

    assert [] == [
        field.name
        for field in fields(kind)
        if field.name not in common and f"`{field.name}`" not in row
    ]


def test_the_map_in_the_readme_is_up_to_date() -> None:
    """If not: `python tools/write_readme_map.py`."""
    tool = runpy.run_path(str(ROOT / "tools" / "write_readme_map.py"))
    readme = DOCS[ROOT / "README.md"]
    modules = {
        path.name
        for folder in tool["FOLDERS"]
        for path in (ROOT / folder).glob("*.py")
        if not path.name.startswith("__")
    }

    assert tool["with_map"](readme) == readme
    assert set() == {module for module in modules if f"| `{module}` |" not in readme}


def test_the_benchmarks_in_the_readme_are_those_measured() -> None:
    """If not: `python tools/write_readme_benchmarks.py`."""
    tool = runpy.run_path(str(ROOT / "tools" / "write_readme_benchmarks.py"))
    readme = DOCS[ROOT / "README.md"]

    assert tool["with_tables"](readme) == readme


def test_the_cases_of_robustness_name_the_tests_that_cover_them() -> None:
    """If not: `python tools/write_robustness_tests.py`."""
    tool = runpy.run_path(str(ROOT / "tools" / "write_robustness_tests.py"))
    page = DOCS[ROOT / "docs" / "robustness.md"]

    assert tool["with_tests"](page) == page


def test_every_test_named_in_the_documents_exists() -> None:
    """Written as `path`::name or `path`::prefix*, relative to `tests/`."""
    missing = []
    for path, test in re.findall(r"`([\w/]+\.py)`::(\w+\*?)", EVERYTHING):
        file = ROOT / "tests" / path
        source = file.read_text(encoding="utf-8") if file.exists() else ""
        pattern = re.escape(test[:-1]) if test.endswith("*") else rf"{test}\("
        if not re.search(rf"^ *(?:async )?def {pattern}", source, re.MULTILINE):
            missing.append(f"{path}::{test}")

    assert [] == missing
