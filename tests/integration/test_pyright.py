"""User code under the other type checker: it must find the lines that are wrong, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

USER_CODE = Path(__file__).parents[1] / "typing" / "user_code.py"


@pytest.mark.slow
def test_pyright_agrees_with_mypy_about_user_code(tmp_path: Path) -> None:
    pytest.importorskip("basedpyright", reason="pip install basedpyright to run it")
    (tmp_path / "user_code.py").write_text(USER_CODE.read_text())
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "--outputjson", "user_code.py"], cwd=tmp_path, capture_output=True, check=False
    )
    # It does not heed `type: ignore` unless told to: so these lines must be those it complains of.
    found = {
        each["range"]["start"]["line"] + 1: each["message"]
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    }
    wrong = [
        number
        for number, line in enumerate(USER_CODE.read_text().splitlines(), 1)
        if "# type: ignore" in line
    ]
    assert len(wrong) > 10
    assert wrong == sorted(found), found
