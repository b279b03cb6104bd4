"""Hold the table of a sink against what a replay gives for it; the user's database is only read.

What a replay gives is written, by the sink's own writer, into a table of the same definition in a
temporary database, to which the user's is attached. So defaults, conversions, collations and keys
are what they were, and SQL tells which rows differ. The user's rows and the position beside them
are read in one transaction. If the replay begins with the first record ever, both tables must have
the same rows; if not, it is not known what else was there, and the rows of the replay must be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias, cast
from urllib.parse import quote

from millstream import Record, UsageError, UserDatabase

from .connectors import NotComparable, RefusedRecords, Replayed, SinkDifference, SinkWriter
from .file_formats import object_of

_PIECE_RECORDS: Final = 1000
"""So many records of the replay are in memory at a time."""

_ATTEMPTS: Final = 100
"""How often to catch up with a pipeline that goes on delivering."""

_SIMILAR_ROWS: Final = 1000
"""Among so many rows the one is looked for that was changed."""

_TEXT_LENGTH: Final = 200
"""Characters shown of a row."""

_Texts: TypeAlias = tuple[str, ...]
"""The fields of a row as SQL literals, which keep their types apart."""


@dataclass(frozen=True)
class HeldTable:
    """A table to be compared."""

    filename: str
    """Of its database, as SQLite opens it."""
    path: str
    """The same, for messages."""
    table: str
    key: tuple[str, ...]
    """The columns that say which row it is; none: rows are only added."""
    outbox: str
    writer: Callable[[UserDatabase], SinkWriter]
    """What writes such a table."""
    condition: Callable[[bytes], tuple[str, Sequence[str | int | float | None]]]
    """The condition, with bindings, by which a tombstone of this key finds the row to delete."""


def compare_table(held: HeldTable, replayed: Replayed) -> SinkDifference | None:
    """The first difference; see `ComparableSink.compare`.

    Raises:
        NotComparable: The table is none that can be made again.
        LockedError: The database stayed locked for 10 s.
        DataError: It is damaged.
    """
    with UserDatabase("") as scratch:
        scratch.query("PRAGMA synchronous = OFF")
        scratch.query("PRAGMA foreign_keys = OFF")  # other tables are not there
        scratch.query("ATTACH ? AS held", (_read_only_uri(held.filename),))
        return _Comparison(scratch, held, replayed).difference()


def _read_only_uri(filename: str) -> str:
    if filename.startswith("file:"):
        return f"{filename}{'&' if '?' in filename else '?'}mode=ro"
    return f"file:{quote(filename)}?mode=ro"


class _Counted(NamedTuple):
    """A row of tables to which rows are only added."""

    texts: _Texts
    given: int
    """So often a replay gives it."""
    found: int
    """So often it is there."""
    first: int | None
    """Its first number in what the replay gives, where rows are numbered."""
    last: int | None
    """Its last number in the user's table."""


class _Comparison:
    """One comparison, whose temporary database has the user's attached as `held`."""

    def __init__(self, scratch: UserDatabase, held: HeldTable, replayed: Replayed) -> None:
        self._scratch = scratch
        self._held = held
        self._replayed = replayed
        self._place = f"{held.path}, table {held.table!r}"
        self._table = UserDatabase.quoted(held.table)
        self._whole = replayed.start == 0 and replayed.passed == 0
        self._writer: SinkWriter | None = None
        self._written = replayed.passed
        """Records of the replay that are in the temporary table, or passed over."""
        self._following = 0
        """One behind the offset of the last of them."""
        self._all: set[str] = set()
        """Columns that some record has set."""
        self._common: set[str] | None = None
        """Columns that every record has set."""

    def difference(self) -> SinkDifference | None:
        """Write what the replay gives, and compare."""
        if not self._copy_definition():
            first = next(self._replayed.records(self._position()), None)
            if first is None:
                return None
            return SinkDifference(self._place, f"the row {_shown(_value(first))}", "no such table")
        self._writer = self._held.writer(self._scratch)
        with self._scratch.transaction("prepare to compare"):
            self._scratch.query("CREATE TABLE main.millstream_deleted (key BLOB PRIMARY KEY)")
        for _ in range(_ATTEMPTS):
            position = self._position()
            refused = self._write(position)
            if refused is not None:
                return refused
            with self._scratch.transaction("compare"):
                if self._position() == position:
                    return self._compare()
        raise NotComparable(f"{self._place} goes on changing: stop the pipeline for a moment")

    def _position(self) -> int:
        """Up to which offset of the outbox the table has the records."""
        if not self._is_there("millstream_positions"):
            return 0
        sql = "SELECT next_offset FROM held.millstream_positions WHERE outbox = ?"
        rows = self._scratch.query(sql, (self._held.outbox,))
        offset = rows[0][0] if rows else 0
        if not isinstance(offset, int) or offset < 0:
            raise NotComparable(f"{self._held.path}: millstream_positions has {offset!r}")
        return offset

    def _is_there(self, table: str) -> bool:
        sql = "SELECT 1 FROM held.sqlite_schema WHERE type = 'table' AND name = ? COLLATE NOCASE"
        return bool(self._scratch.query(sql, (table,)))

    def _copy_definition(self) -> bool:
        """Make the same table in the temporary database; False if there is none."""
        rows = self._scratch.query(
            "SELECT sql FROM held.sqlite_schema WHERE tbl_name = ? COLLATE NOCASE AND"
            " type IN ('table', 'view', 'index') AND sql NOT NULL ORDER BY type = 'index'",
            (self._held.table,),
        )
        with self._scratch.transaction("copy the table"):
            for (sql,) in rows:
                if not str(sql).upper().startswith(("CREATE TABLE", "CREATE INDEX", "CREATE UNIQ")):
                    raise NotComparable(f"{self._place} is no plain table")
                try:
                    self._scratch.query(str(sql))
                except UsageError as error:
                    message = f"{self._place} cannot be made again: {error.message}"
                    raise NotComparable(message) from error
        return bool(rows)

    # --- what the replay gives -----------------------------------------------------------------

    def _write(self, position: int) -> SinkDifference | None:
        """Write what the replay gives up to a position; a difference if the table refuses it."""
        assert self._writer is not None
        records = self._replayed.records(position, begin=self._written)
        while piece := list(islice(records, _PIECE_RECORDS)):
            following = piece[-1].offset + 1
            try:
                self._writer.write(piece, self._following, following)
            except RefusedRecords as error:
                at, reason = min(error.reasons.items())
                value = next(_value(record) for record in piece if record.offset == at)
                return SinkDifference(self._place, f"what is refused ({reason}): {value}", "rows")
            self._following = following
            self._written += len(piece)
            self._note(piece)
        return None

    def _note(self, records: Sequence[Record]) -> None:
        """Note which columns were set and which rows deleted."""
        deleted = []
        for record in records:
            if record.value is None:
                deleted.append((record.key,))
                continue
            names = set(object_of(record))
            self._all |= names
            self._common = names if self._common is None else self._common & names
        if deleted and not self._whole:
            with self._scratch.transaction("note what was deleted"):
                sql = "INSERT OR IGNORE INTO main.millstream_deleted VALUES (?)"
                self._scratch.execute_many(sql, deleted)

    # --- what differs --------------------------------------------------------------------------

    def _compare(self) -> SinkDifference | None:
        key = self._held.key
        # What else a row had before the replay began is not known.
        known = self._all if self._whole or not key else (self._common or set()) | set(key)
        columns = [
            column.name
            for column in self._scratch.columns(self._held.table)
            if column.name in known
        ]
        if not columns:
            return None
        return self._compare_by_key(columns) if key else self._compare_rows(columns)

    def _compare_by_key(self, columns: Sequence[str]) -> SinkDifference | None:
        names = list(map(UserDatabase.quoted, columns))
        keys = list(map(UserDatabase.quoted, self._held.key))
        given, found = _quoted("given", names), _quoted("found", names)
        same_key = " AND ".join(f"given.{name} = found.{name}" for name in keys)
        others = " OR ".join(f"{a} <> {b}" for a, b in zip(given, found, strict=True))
        order = ", ".join(f"given.{name}" for name in keys)
        rows = self._scratch.query(
            f"SELECT found.{keys[0]} IS NULL, {', '.join(given + found)}"  # noqa: S608 - quoted
            f" FROM main.{self._table} given LEFT JOIN held.{self._table} found ON {same_key}"
            f" WHERE found.{keys[0]} IS NULL OR {others} ORDER BY {order} LIMIT 1"
        )
        for gone, *fields in rows:
            expected, there = _texts(fields[: len(names)]), _texts(fields[len(names) :])
            place = f"{self._place}, {self._key_text(columns, expected)}"
            if gone:
                return SinkDifference(place, _row(columns, expected), None)
            return _one_column(place, columns, expected, there)
        return self._other_row(columns, same_key) if self._whole else self._undeleted()

    def _other_row(self, columns: Sequence[str], same_key: str) -> SinkDifference | None:
        """A row with a key that the replay does not give."""
        names = list(map(UserDatabase.quoted, columns))
        key = UserDatabase.quoted(self._held.key[0])
        rows = self._scratch.query(
            f"SELECT {', '.join(_quoted('found', names))} FROM held.{self._table} found"  # noqa: S608 - quoted
            f" LEFT JOIN main.{self._table} given ON {same_key}"
            f" WHERE given.{key} IS NULL ORDER BY 1 LIMIT 1"
        )
        for fields in rows:
            texts = _texts(fields)
            place = f"{self._place}, {self._key_text(columns, texts)}"
            return SinkDifference(place, None, _row(columns, texts))
        return None

    def _undeleted(self) -> SinkDifference | None:
        """A row that was deleted by the last record of its key, and is there."""
        for (key,) in self._scratch.query("SELECT key FROM main.millstream_deleted ORDER BY key"):
            assert isinstance(key, bytes)
            condition, bindings = self._held.condition(key)
            where = f"FROM {{}}.{self._table} WHERE {condition}"
            if not self._scratch.query(f"SELECT 1 {where.format('main')}", bindings) and (
                self._scratch.query(f"SELECT 1 {where.format('held')} LIMIT 1", bindings)
            ):
                return SinkDifference(f"{self._place}, the row of key {key!r}", None, "the row")
        return None

    def _compare_rows(self, columns: Sequence[str]) -> SinkDifference | None:
        """Compare tables to which rows are only added: each row must be there as often."""
        lacking = self._counted(columns, "given > found ORDER BY first LIMIT 1")
        more = self._counted(columns, f"given < found ORDER BY last DESC LIMIT {_SIMILAR_ROWS}")
        if not lacking:
            return _surplus(self._place, columns, more[-1]) if more and self._whole else None
        (row,) = lacking
        text = _row(columns, row.texts)
        if row.found:
            return SinkDifference(self._place, f"{text} ({row.given} times)", f"{row.found} times")
        for other in more:
            # It was changed, if one too many differs in one field.
            if _differing(row.texts, other.texts) == 1 < len(columns):
                place = self._place if other.last is None else f"{self._place}, rowid {other.last}"
                return _one_column(place, columns, row.texts, other.texts)
        return SinkDifference(self._place, text, None)

    def _counted(self, columns: Sequence[str], condition: str) -> list[_Counted]:
        """Rows of both tables together, with how often each of them has one."""
        number = "rowid" if self._has_rowid() else "NULL"
        literals = _quoted("t", list(map(UserDatabase.quoted, columns)))
        names = [f"f{at}" for at in range(len(columns))]
        fields = ", ".join(map("{} AS {}".format, literals, names))
        sides = " UNION ALL ".join(
            f"SELECT {fields}, {given}, {number} AS number FROM {side}.{self._table} t"  # noqa: S608 - quoted
            for side, given in (("main", "1 AS g, 0 AS h"), ("held", "0 AS g, 1 AS h"))
        )
        rows = self._scratch.query(
            f"SELECT {', '.join(names)}, sum(g) AS given, sum(h) AS found,"  # noqa: S608 - quoted
            " min(CASE g WHEN 1 THEN number END) AS first,"
            " max(CASE h WHEN 1 THEN number END) AS last"
            f" FROM ({sides}) GROUP BY {', '.join(names)} HAVING {condition}"
        )
        return [_Counted(_texts(row[:-4]), *cast("Any", row[-4:])) for row in rows]

    def _has_rowid(self) -> bool:
        try:
            self._scratch.query(f"SELECT rowid FROM main.{self._table} LIMIT 0")  # noqa: S608 - quoted
        except UsageError:
            return False
        return True

    def _key_text(self, columns: Sequence[str], texts: _Texts) -> str:
        fields = dict(zip(columns, texts, strict=True))
        return ", ".join(f"{name}={fields[name]}" for name in self._held.key)


def _quoted(table: str, names: Sequence[str]) -> list[str]:
    """The fields of a table, as expressions that give SQL literals."""
    return [f"quote({table}.{name})" for name in names]


def _differing(row: _Texts, other: _Texts) -> int:
    """In how many fields two rows differ."""
    return sum(a != b for a, b in zip(row, other, strict=True))


def _surplus(place: str, columns: Sequence[str], row: _Counted) -> SinkDifference:
    """A row that is there too often."""
    text = _row(columns, row.texts)
    if not row.given:
        return SinkDifference(place, None, text)
    return SinkDifference(place, f"{text} ({row.given} times)", f"{row.found} times")


def _texts(fields: Sequence[object]) -> _Texts:
    return tuple(map(str, fields))


def _one_column(
    place: str, columns: Sequence[str], expected: _Texts, found: _Texts
) -> SinkDifference:
    """Two rows that differ, by the first of their columns that does."""
    name, given, there = next(
        each for each in zip(columns, expected, found, strict=True) if each[1] != each[2]
    )
    return SinkDifference(f"{place}, column {name!r}", _shown(given), _shown(there))


def _row(columns: Sequence[str], texts: _Texts) -> str:
    return _shown(", ".join(f"{name}={text}" for name, text in zip(columns, texts, strict=True)))


def _value(record: Record) -> str:
    return "a tombstone" if record.value is None else record.value.decode(errors="replace")


def _shown(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH]}... ({len(text)} in all)"
