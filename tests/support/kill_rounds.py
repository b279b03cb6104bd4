"""Rounds of kills: processes of several roles work on one store and die; what is left is checked.

Each round starts waves of one to three processes, one wave after the other has been killed, at
random moments; what one leaves is the next one's to recover. Then the store is opened twice: to
check and go on writing, and to check again. A seed decides roles, order and how much each has
reported when it is killed; the moment itself is the machine's.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from kill_roles import ALONE, ANYWHERE, CHECKS, ROLES, create, go_on

import millstream

if TYPE_CHECKING:
    from zygote import Report, Zygote

ROUNDS_PER_STORE = 12
WAVES_MAX = 6
VERIFY_EACH = 4


def fast_directory() -> str | None:
    """Where a sync takes no time, if there is such a place: kills take nothing from its files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class KillRounds:
    """Plays rounds in a directory, with a new store now and then."""

    def __init__(self, zygote: Zygote, directory: Path, seed: int) -> None:
        self._zygote = zygote
        self._directory = directory
        self._random = Random(seed)
        self._number = 0
        self._path = directory
        self._reports: dict[str, list[Report]] = {}
        self.kills: Counter[str] = Counter()
        """How many processes of each role were killed."""

    def play(self) -> None:
        """One round."""
        if self._number % ROUNDS_PER_STORE == 0:
            self._new_store()
        self._number += 1
        died: set[str] = set()
        try:
            for _ in range(self._random.randrange(1, WAVES_MAX + 1)):
                died |= self._live_and_die(self._choose_roles())
            for _ in range(2):
                with millstream.open(self._path) as store:
                    for role in sorted(died):
                        CHECKS[role](store, self._reports[role])
                    go_on(store)
            if self._number % VERIFY_EACH == 0:
                with millstream.open(self._path, read_only=True) as store:
                    findings = store.verify(deep=True).findings
                    assert not findings, findings
        except BaseException as error:
            error.add_note(f"round {self._number}, {sorted(died)}, store {self._path}")
            raise

    def _new_store(self) -> None:
        for left in self._directory.iterdir():
            shutil.rmtree(left)
        self._path = self._directory / f"store{self._number}"
        self._reports = {role: [] for role in ROLES}
        create(self._path, self._random)

    def _choose_roles(self) -> list[str]:
        roles: list[str] = []
        for _ in range(self._random.choice((1, 1, 2, 3))):
            role = self._random.choice(ANYWHERE)
            if role not in roles or role not in ALONE:
                roles.append(role)
        return roles

    def _live_and_die(self, roles: list[str]) -> set[str]:
        random = self._random
        children = []
        contexts = []
        try:
            for role in roles:
                context = self._zygote.spawn(role, self._path, random.randrange(1 << 30))
                children.append((role, context.__enter__()))
                contexts.append(context)
            random.shuffle(children)
            for role, child in children:
                child.hear(random.choice((0, 1, 2, random.randrange(12))))
                self._reports[role] += child.kill()
                self.kills[role] += 1
        finally:
            for context in contexts:
                context.__exit__(None, None, None)
        for left in self._directory.iterdir():
            if left != self._path:
                shutil.rmtree(left)  # backups that were taken
        return set(roles)
