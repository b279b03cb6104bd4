"""Write the README's map of the folders: one line per module, from its docstring.

    python tools/write_readme_map.py

The order is that of the layers in pyproject.toml, bottom first, so that a module uses only what
stands above it. A test compares the README with what this would write.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"logstore": "millstream", "processor": "millstream.processor", "cli": "millstream.cli"}
BEGIN = "<!-- map:begin, written by tools/write_readme_map.py -->\n"
END = "<!-- map:end -->\n"


def layers() -> dict[str, list[str]]:
    """The modules of each package, bottom layer first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    return {
        contract["containers"][0]: [
            module for layer in reversed(contract["layers"]) for module in re.findall(r"\w+", layer)
        ]
        for contract in contracts
        if contract["type"] == "layers"
    }


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring, which by our rules says what the module is."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0].replace("|", "\\|")


def table(folder: str, package: str, modules: list[str]) -> str:
    """The map of one folder."""
    paths = [ROOT / folder / f"{module}.py" for module in modules]
    rows = [f"| `{path.name}` | {first_sentence(path)} |\n" for path in paths if path.exists()]
    head = f"`{folder}/`, imported as `{package}`:\n\n| module | what it is |\n|---|---|\n"
    return f"{head}{''.join(rows)}\n"


def with_map(readme: str) -> str:
    """`readme` with its map as it should be."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    order = layers()
    tables = "".join(table(folder, package, order[package]) for folder, package in FOLDERS.items())
    return f"{before}{BEGIN}\n{tables}{END}{after}"


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(with_map(README.read_text(encoding="utf-8")), encoding="utf-8")
