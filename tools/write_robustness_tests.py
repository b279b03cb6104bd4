"""Write into docs/robustness.md which tests cover which case.

    python tools/write_robustness_tests.py

A test says in its name what it covers: `test_scenario_16_...` covers case 16, `test_e19_e20_...`
and `test_..._e19_e20` the cases E19 and E20. Tests written into a row by hand stay there as long
as they exist. A case without any says open. A test compares the page with what this would write.

Below "The matrix" it says which of the scenarios of the log run over codecs, segments and restarts
(`tests/support/matrix.py`), by the tests that ask for a cell; the others have their reason in
`NOT_OVER_THE_MATRIX`. Whoever takes a scenario out of the matrix has to say why there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "robustness.md"
_ROW = re.compile(r"^\| (E?\d+) \|")
_OPEN = "open"
_BEGIN = "<!-- matrix: written by tools/write_robustness_tests.py -->\n"
_END = "<!-- end of matrix -->\n"
_CELLS = {"cell", "any_cell"}
SCENARIOS = 84

NOT_OVER_THE_MATRIX = {
    49: "about locks: no batch is read",
    50: "about owners and their epochs: no batch is read",
    51: "about handles after a fork",
    53: "a batch is cut before any section is unpacked; one segment has the end",
    54: "about lock files and leases",
    56: "about what the interpreter still does at its exit",
    69: "about owners and their timeouts",
    78: "about sizes and counts: the largest ones do not fit the matrix",
    79: "about numbers in headers, which are never compressed",
    80: "stores of released versions are as they are; a codec without its library is its subject",
    81: "draws codec, sizes of segments and restarts itself",
    82: "gives any bytes to each parser alone, to each codec, too",
    83: "about the simulated machine, not about what it stores",
}
"""Why a scenario is not run for each codec, number of segments and number of restarts."""


def tests() -> Iterator[tuple[str, str]]:
    """Every test as it is written in the page, and its bare name."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", source, re.MULTILINE):
            yield f"`{path.relative_to(ROOT / 'tests')}`::{name}", name


def cases(name: str) -> set[str]:
    """The cases a test covers by its name.

    >>> sorted(cases("test_scenario_04_05_what_follows")), sorted(cases("test_half_open_e19_e20"))
    (['4', '5'], ['E19', 'E20'])
    """
    found = {f"E{number}" for number in re.findall(r"_e(\d+)(?![0-9a-z])", name)}
    for numbers in re.findall(r"_scenario((?:_\d+)+)(?![0-9a-z])", name):
        found |= {str(int(number)) for number in numbers[1:].split("_")}
    return found


def tests_with_cells() -> Iterator[tuple[str, str]]:
    """Name of every test that asks for a cell of the matrix, and how many it takes of them."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {each.name: each for each in tree.body if isinstance(each, ast.FunctionDef)}
        asking, grown = set(_CELLS), True
        while grown:  # a fixture may ask for one that asks
            found = {name for name, each in functions.items() if asking & _arguments(each)}
            grown, asking = not found <= asking, asking | found
        for name, function in functions.items():
            if name.startswith("test_") and name in asking:
                yield name, _marked(function)


def _arguments(function: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in function.args.args}


def _marked(function: ast.FunctionDef) -> str:
    """Which cells the mark of a test takes."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".cells"):
            marked = {each.arg: ast.literal_eval(each.value) for each in decorator.keywords}
            if "count" in marked:
                return f"{marked['count']} drawn, or all"
            return f"those of {marked['segments']} segments"
    return "all"


def matrix() -> str:
    """The table of what runs over the matrix and what does not.

    Raises:
        ValueError: A scenario is neither, or both.
    """
    over: dict[int, list[str]] = {}
    for name, cells in tests_with_cells():
        for number in cases(name):
            if number.isdigit() and int(number) <= SCENARIOS:
                over.setdefault(int(number), []).append(cells)
    lines = ["| # | cells, per test | why not |", "|---|---|---|"]
    for number in range(1, SCENARIOS + 1):
        if (number in over) == (number in NOT_OVER_THE_MATRIX):
            raise ValueError(
                f"scenario {number} must either have a test that takes `cell` or `any_cell`, or a"
                " reason in NOT_OVER_THE_MATRIX, not both"
            )
        kinds = over.get(number, [])
        counts = [f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds))]
        lines.append(
            f"| no. {number} | {'; '.join(counts)} | {NOT_OVER_THE_MATRIX.get(number, '')} |"
        )
    return "\n".join(lines) + "\n"


def with_matrix(page: str) -> str:
    """`page` with the table of the matrix as it should be."""
    before, _, rest = page.partition(_BEGIN)
    _, found, after = rest.partition(_END)
    if not found:
        raise ValueError(f"docs/robustness.md has lost the lines around its matrix: {_BEGIN}")
    return before + _BEGIN + "\n" + matrix() + "\n" + _END + after


def with_tests(page: str) -> str:
    """`page` with the last cell of each case, and the matrix, as they should be."""
    page = with_matrix(page)
    existing = dict(tests())
    lines = page.split("\n")
    for index, line in enumerate(lines):
        row = _ROW.match(line)
        if row is None:
            continue
        *front, last = line.removesuffix(" |").split(" | ")
        kept = [test for test in last.split("<br>") if test in existing]
        named = [test for test, name in existing.items() if row.group(1) in cases(name)]
        covering = [*kept, *(test for test in named if test not in kept)]
        lines[index] = " | ".join([*front, "<br>".join(covering) or _OPEN]) + " |"
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(with_tests(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
