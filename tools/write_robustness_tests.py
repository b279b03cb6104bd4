"""Write into docs/robustness.md which tests cover which case.

    python tools/write_robustness_tests.py

A test says in its name what it covers: `test_scenario_16_...` covers case 16, `test_e19_e20_...`
and `test_..._e19_e20` the cases E19 and E20. Tests written into a row by hand stay there as long
as they exist. A case without any says open. A test compares the page with what this would write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "robustness.md"
_ROW = re.compile(r"^\| (E?\d+) \|")
_OPEN = "open"


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


def with_tests(page: str) -> str:
    """`page` with the last cell of each case as it should be."""
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
