"""The wheel holds Millstream, all of it, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"logstore": "millstream", "processor": "millstream/processor", "cli": "millstream/cli"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy: building leaves directories behind that a later build packs."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    target = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_sql_brings_all_that_columns_need() -> None:
    """Its tables of topics with a schema are Arrow columns."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(extras["arrow"]) < set(extras["sql"])


def test_wheel_has_one_top_level_and_the_type_marker(wheel: Path) -> None:
    assert {"millstream"} == {
        name.split("/")[0] for name in names(wheel) if ".dist-info/" not in name
    }
    assert "millstream/py.typed" in names(wheel)


def test_wheel_holds_every_module_and_the_flights(wheel: Path) -> None:
    modules = {
        f"{target}/{path.name}"
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).glob("*.py")
    }

    assert modules <= names(wheel)
    assert "millstream/cli/data/flights-2013-01.jsonl.gz" in names(wheel)


def test_flights_stay_small() -> None:
    assert (ROOT / "cli/data/flights-2013-01.jsonl.gz").stat().st_size < 500_000


def test_wheel_passes_check_wheel_contents(wheel: Path) -> None:
    run("-m", "check_wheel_contents", "--config", str(ROOT / "pyproject.toml"), str(wheel))


def test_installed_wheel_runs_the_command(wheel: Path, tmp_path: Path) -> None:
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel))

    where = run("-c", "import millstream; print(millstream.__file__)", PYTHONPATH=str(tmp_path))
    assert str(tmp_path / "millstream" / "__init__.py") == where.strip()
    assert "millstream" in run("-m", "millstream", "version", PYTHONPATH=str(tmp_path))
