"""Scenario 47 with many short-lived processes in many roles; `make crash MINUTES=5` plays more."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from kill_rounds import KillRounds, fast_directory
from zygote import Zygote

ROUNDS = int(os.environ.get("MILLSTREAM_KILL_ROUNDS", "35"))
"""Of each store: some 190 kills."""
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("store", range(4))
def test_scenario_47_processes_of_all_roles_are_killed(store: int) -> None:
    """Append, roll, retention, transactions, compaction, groups, queues, backups, no room."""
    with Zygote() as zygote, tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        rounds = KillRounds(zygote, Path(directory), 100 * SEED + store)
        for _ in range(ROUNDS):
            rounds.play()
    kills = rounds.kills.total()
    print(f"{kills} processes killed: {dict(rounds.kills)}")  # noqa: T201 - with -rP
    assert kills > 3 * ROUNDS
