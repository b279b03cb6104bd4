"""The keyed states of a pipeline in one SQLite file beside the store: which are trusted, and when.

The file is a cache of the state topics. It says, for each operator, up to which offset of its topic
it has the records; a restart applies those behind it. Where it says nothing of an operator, or
something that cannot be, its tables are filled anew from the topic. The file is written after a
commit, with committed records only, and not with each: as much as memory has room for may wait.

    owner       epoch of the run that writes; a former one is refused
    operators   name, identity, id of its state topic, end: the offset behind the last record it has
    states      number, operator and path prefix of each table state_<number>
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self

from millstream import CacheDatabase, FencedError, Store, SystemClock

from .holding import StateHolding
from .keyed_state import Codec, KeyedState, StateMark, States
from .row_codec import PLAIN
from .serde import encode_state
from .spill_tables import KeyTable, StateTable
from .spilled_state import SpilledState

_LAYOUT: Final = 1
"""Version of the tables. A file of another is emptied."""

_TABLES: Final = """
CREATE TABLE layout (version INTEGER NOT NULL) STRICT;
CREATE TABLE owner (epoch INTEGER NOT NULL) STRICT;
CREATE TABLE operators (
    name TEXT PRIMARY KEY, identity TEXT NOT NULL, topic INTEGER NOT NULL, "end" INTEGER NOT NULL
) STRICT;
CREATE TABLE states (
    number INTEGER PRIMARY KEY, operator TEXT NOT NULL, prefix BLOB NOT NULL,
    UNIQUE (operator, prefix)
) STRICT;
"""


class Spilling(Protocol):
    """What is known here of a state that spills; see `SpilledState`."""

    name: str
    """Of its operator."""

    @property
    def table(self) -> StateTable:
        """Where it spills to."""
        ...

    @property
    def young_bytes(self) -> int:
        """Memory that it could do with less of, about."""
        ...

    @property
    def dirty_bytes(self) -> int:
        """Memory that must not be forgotten, because the file does not have it, about."""
        ...

    def turn(self) -> None:
        """Forget what was not used lately, and the file has."""
        ...

    def write(self) -> None:
        """Give the file what `changes` has given, in a transaction. All of it is committed."""
        ...


class SpilledStates(States):
    """Makes keyed states that spill. A context manager; not thread-safe.

    Args:
        database: Where they spill to; closed with this.
        cache_bytes: About how much memory all of them may take.
        epoch: Of the run that owns the pipeline.
    """

    def __init__(self, database: CacheDatabase, cache_bytes: int, epoch: int = 0) -> None:
        self._database = database
        self.cache_bytes = cache_bytes
        """About how much memory all of them may take."""
        self._epoch = epoch
        self._states: list[Spilling] = []
        self._settled = True
        """Whether all that `changes` has given is committed."""
        self._marks: dict[str, StateMark | None] = {}
        """Up to where the tables of each operator are whole, once they are written."""
        database.set_cache_bytes(cache_bytes // 4)
        self._open()

    def _open(self) -> None:
        if self._layout() not in {None, _LAYOUT}:
            with self._database.transaction("empty the cache of state"):
                for (table,) in self._database.query(
                    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'cache_origin'"
                ):
                    self._database.query(f"DROP TABLE {table!s}")
        with self._database.transaction("open the cache of state"):
            if self._layout() is None:
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._database.query(statement)
                self._database.query("INSERT INTO layout VALUES (?)", (_LAYOUT,))
            self._database.query("DELETE FROM owner")
            self._database.query("INSERT INTO owner VALUES (?)", (self._epoch,))

    def _layout(self) -> object:
        if not self._database.query("SELECT 1 FROM sqlite_schema WHERE name = 'layout'"):
            return None
        rows = self._database.query("SELECT version FROM layout")
        return rows[0][0] if rows else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is committed, unless there was an error, and close the file."""
        try:
            if kind is None and self._settled and not self._database.temporary:
                self.write()
        finally:
            self._database.close()

    # --- states --------------------------------------------------------------------------------

    def make(
        self,
        name: str,
        codec: Codec = PLAIN,
        *,
        prefix: tuple[object, ...] = (),
        ttl_ms: int | None = None,
    ) -> KeyedState[Any]:
        """See `States.make`."""
        table = KeyTable(*self.place(name, prefix))
        state = SpilledState[Any](table, self, name, codec, prefix=prefix, ttl_ms=ttl_ms)
        self.add(state)
        return state

    def place(self, name: str, prefix: tuple[object, ...]) -> tuple[CacheDatabase, int]:
        """Where the table of a state is, and its number; it is made by `add`."""
        where = name, encode_state(prefix)
        with self._database.transaction("open a state"):
            self._database.query(
                "INSERT OR IGNORE INTO states (operator, prefix) VALUES (?, ?)", where
            )
            ((number,),) = self._database.query(
                "SELECT number FROM states WHERE operator = ? AND prefix = ?", where
            )
            assert isinstance(number, int)
        return self._database, number

    def add(self, state: Spilling) -> None:
        """Count a state in, and make its table."""
        with self._database.transaction("open a state"):
            state.table.create()
        self._states.append(state)

    @property
    def full(self) -> bool:
        """Whether a quarter of the memory holds what the file does not have."""
        return sum(state.dirty_bytes for state in self._states) > self.cache_bytes // 4

    def trim(self) -> None:
        """Keep two generations within the memory there is; see spilled_state.py."""
        young = sum(state.young_bytes for state in self._states)
        if young > self.cache_bytes // 2:
            dirty = sum(state.dirty_bytes for state in self._states)
            # Where most must stay, to look through it would not be worth what goes.
            if young - dirty > self.cache_bytes // 8:
                for state in self._states:
                    state.turn()

    # --- restart -------------------------------------------------------------------------------

    @contextmanager
    def restoring(self, name: str, mark: StateMark | None, *, whole: bool) -> Iterator[int]:
        """See `States.restoring`."""
        mine = [state for state in self._states if state.name == name]
        end = self._end(name, mark) if whole else None
        if mine and end is None:
            with self._database.transaction("empty a state"):
                self._database.query("DELETE FROM operators WHERE name = ?", (name,))
                for state in mine:
                    state.table.clear()
        yield (mark.snapshot_offset if mark else 0) if end is None else end
        if mine:
            self._marks[name] = mark
            self.write()

    def _end(self, name: str, mark: StateMark | None) -> int | None:
        """The offset up to which the tables of an operator are whole; None if they are not."""
        rows = self._database.query(
            'SELECT identity, topic, "end" FROM operators WHERE name = ?', (name,)
        )
        if not rows or mark is None or mark.end_offset is None:
            return None
        identity, topic, end = rows[0]
        assert isinstance(end, int)
        same = (identity, topic) == (mark.identity, mark.topic)
        # What ends where the snapshot begins may be what was there before a migration.
        return end if same and mark.snapshot_offset < end <= mark.end_offset else None

    def forget_others(self) -> None:
        """Drop what the file has of operators that are gone."""
        names = {state.name for state in self._states}
        with self._database.transaction("forget states"):
            rows = self._database.query("SELECT number, operator FROM states")
            for number, operator in rows:
                if operator not in names:
                    self._database.query(f"DROP TABLE state_{number!s}")
                    self._database.query("DELETE FROM states WHERE number = ?", (number,))
                    self._database.query("DELETE FROM operators WHERE name = ?", (operator,))

    # --- commit --------------------------------------------------------------------------------

    def changing(self) -> None:
        """See `States.changing`."""
        self._settled = False

    def committed(self, marks: Mapping[str, StateMark]) -> None:
        """See `States.committed`. The file is written when memory has enough for it."""
        self._settled = True
        swept = False
        for name in self._marks.keys() & marks.keys():
            former, self._marks[name] = self._marks[name], marks[name]
            # The records that the file would go on from may be gone.
            swept |= former is not None and former.snapshot_offset != marks[name].snapshot_offset
        waiting = sum(state.dirty_bytes for state in self._states)
        if swept or waiting > self.cache_bytes // 8:
            self.write()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that changes tables; FencedError if a newer run has the file."""
        with self._database.transaction("keep state"):
            if self._database.query("SELECT epoch FROM owner") != [(self._epoch,)]:
                raise FencedError(
                    f"a newer run has taken over the cache of state from run {self._epoch}",
                    path=self._database.filename,
                )
            yield

    def write(self) -> None:
        """Write what was committed, and up to where that is."""
        known = [
            (name, mark.identity, mark.topic, mark.end_offset)
            for name, mark in self._marks.items()
            if mark is not None and mark.end_offset is not None
        ]
        with self.writing():
            for state in self._states:
                state.write()
            self._database.execute_many("REPLACE INTO operators VALUES (?, ?, ?, ?)", known)


def open_states(store: Store, name: str, holding: StateHolding, epoch: int) -> States:
    """The states of a run of a pipeline.

    Args:
        store: Beside which they spill.
        name: Of the pipeline.
        holding: As it is declared.
        epoch: Of the run that owns it.
    """
    if not holding.spills:
        # Nobody would keep it up to date.
        store.remove_cache(name)
        return States()
    return SpilledStates(store.cache_database(name), holding.cache_bytes, epoch)


def temporary_states(holding: StateHolding) -> States:
    """The same for a run that leaves nothing behind."""
    if not holding.spills:
        return States()
    return SpilledStates(CacheDatabase("", clock=SystemClock()), holding.cache_bytes)
