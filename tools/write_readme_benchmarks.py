"""Write the README's benchmark table from benchmarks/results: every target, missed ones included.

    python tools/write_readme_benchmarks.py

The files are written by `python -m benchmarks`. A test compares the README with what this would
write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- benchmarks:begin, written by tools/write_readme_benchmarks.py -->\n"
END = "<!-- benchmarks:end -->\n"


def tables(results: Path) -> str:
    """One table per machine that was measured."""
    files = sorted(results.glob("*.json"))
    if not files:
        return "Not measured yet.\n"
    return "\n".join("".join(table(json.loads(file.read_text(encoding="utf-8")))) for file in files)


def table(document: dict[str, Any]) -> Iterator[str]:
    """What was measured, against what, and whether that is as fast as we want."""
    workloads = document["workloads"].values()
    machine, versions, days = (
        [workload[about] for workload in workloads] for about in ("machine", "versions", "measured")
    )
    yield (
        f"{machine[0]['processor']}, {machine[0]['processors']} processors,"
        f" {machine[0]['system']} {machine[0]['release']}, Python {versions[0]['python']},"
        f" {max(days)}:\n\n"
    )
    yield "| | workload | durability | measured | target | |\n|---|---|---|---|---|---|\n"
    for workload in workloads:
        for target in workload["targets"]:
            verdict = "met" if target["met"] else "**missed**"
            yield (
                f"| {workload['name']} | {workload['title']}: {target['contestant']}"
                f" | {workload['durability']}"
                f" | {number(target['measured'])} | {target['text']} | {verdict} |\n"
            )


def number(value: float) -> str:
    """Two decimals for a ratio, none for large times."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def with_tables(readme: str) -> str:
    """`readme` with its table as it should be."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables(ROOT / 'benchmarks' / 'results')}\n{END}{after}"


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
