"""SQL for looking: what is in a store, asked by `select`, with DuckDB as the engine.

    from millstream import sql

    with sql.query(store, "select key, count(*) from orders group by 1") as found:
        for key, count in found.rows():
            ...

Every topic is a table of its name. One with a schema has its fields as columns, and _offset,
_partition, _timestamp_ms and _key. Others have partition, offset, timestamp (UTC), key, value and
headers; `value->>'$.amount'` looks into JSON. Keys and values are text there and BLOBs in
`bytes."topic"`. A query sees each topic as it is when it first comes to it, committed records only,
and changes nothing in the store, which may be open read-only while others write.

Not for pipelines: nothing here is incremental, and nothing is exactly once. Needs the extra `sql`
(DuckDB, pyarrow and NumPy), imported when a query is made.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from .errors import MillstreamError, UsageError, missing_extra
from .helpers import Helped
from .positions import parse_size_bytes
from .scan import Scan
from .store import Store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from . import arrow_tables

MEMORY: Final = "1GB"
BATCH_ROWS: Final = 65_536
_TOPICS_NAMED: Final = 20
_WORDS: Final = ("offset", "at")
"""Names of columns that one has, or gives to a time, and that SQL does not take for one."""
_LOOKING: Final = frozenset({"SELECT", "EXPLAIN", "COPY", "PRAGMA", "CALL", "MULTI"})
"""Kinds of statements, as DuckDB calls them, with a result. MULTI is what it makes of a PIVOT."""
_EXCERPT: Final = re.compile(r"^(LINE \d+: .*)\n( *)\^", re.MULTILINE)
_NEAR: Final = re.compile(r'syntax error at or near "(.*)"')
_NO_COLUMN: Final = re.compile(
    r'Referenced column "(\w+)" not found .*\s*Candidate bindings: .*'
    r'"(?:partition|offset|timestamp|key|value|headers)"'
    r"|Cannot extract field '(\w+)' from expression \"value\""
)
_DESCRIBE: Final = re.compile(
    r'\s*desc(?:ribe)?\s+(?:(main|bytes)\s*\.\s*)?(?:"([^"]+)"|(\w+))\s*;?\s*', re.IGNORECASE
)
"""What tells the columns of one table: schema, and its name with quotes or without."""
_USER: Final = "user is a word of SQL"
_INTERRUPT_SECONDS: Final = 0.05


class RowTable(NamedTuple):
    """A table of text columns made of rows, beside the topics.

    Attributes:
        schema: Name of the SQL schema it is in.
        name: Its name there.
        columns: Names of its columns.
        rows: Makes a new pass over its rows, each as long as `columns`.
    """

    schema: str
    name: str
    columns: Sequence[str]
    rows: Callable[[], Iterable[Sequence[str | None]]]


class Query:
    """The result of a query, to be read once, as batches or as rows. For one thread at a time.

    Made by `query`. Closing it, or leaving its `with` block, ends the query.

    Attributes:
        columns: Names of the columns of the result.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        text: str,
        failures: Sequence[MillstreamError],
        topics: Sequence[str],
        described: pa.Schema | None = None,
    ) -> None:
        self._connection = connection
        self._failures = failures
        self._topics = topics
        self._calls: SimpleQueue[Helped[Any] | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="millstream-sql", daemon=True)
        self._worker.start()
        try:
            self._reader = self._ask(lambda: _started(connection, text, described))
        except BaseException:
            self._interrupt()
            self._calls.put(None)
            connection.close()
            raise
        self.columns: list[str] = list(self._reader.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """The pyarrow.Schema of the result."""
        return self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rest of the result as batches of Arrow, as they come.

        Raises:
            UsageError: DuckDB cannot go on: a value does not convert, the memory does not do.
            RecordError: A key or value is not UTF-8.
            DataError: What is read is damaged.
        """
        while (batch := self._ask(self._next)) is not None:
            yield batch

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rest of the result as tuples.

        Raises:
            UsageError: As `batches`; or a time is outside of the years that Python knows.
            DataError: As `batches`.
        """
        for batch in self.batches():
            try:
                columns = [column.to_pylist() for column in batch.columns]
            except OverflowError:
                raise UsageError(
                    "a date or timestamp is infinite, or outside of the years 1 to 9999: cast it to"
                    " text in SQL, or take the result as Arrow"
                ) from None
            yield from zip(*columns, strict=True)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rest of the result for whoever takes Arrow: `polars.DataFrame(found)`."""
        import pyarrow  # noqa: PLC0415 - an extra

        reader = pyarrow.RecordBatchReader.from_batches(self.schema, self.batches())
        return reader.__arrow_c_stream__(requested_schema)

    def _next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call DuckDB; what went wrong in our own part of it is raised as the error it was."""
        import duckdb  # noqa: PLC0415 - an extra
        import pyarrow  # noqa: PLC0415 - an extra

        try:
            return self._interruptible(call)
        except (duckdb.Error, pyarrow.ArrowException, OSError) as error:
            if self._failures:
                raise self._failures[0] from None
            raise UsageError(_advised(str(error), self._topics)) from None

    def _interruptible(self, call: Callable[[], Any]) -> Any:
        """Call in another thread: while DuckDB works in this one, Python sees no Ctrl-C."""
        asked = Helped(call)
        try:
            self._calls.put(asked)
            return asked.wait()
        except KeyboardInterrupt:
            self._interrupt()
            raise

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            asked.run()

    def _interrupt(self) -> None:
        """Have DuckDB leave what it works at, also where the interrupt came as it was asked."""
        idle: SimpleQueue[None] = SimpleQueue()
        self._calls.put(Helped(lambda: idle.put(None)))
        while self._worker.is_alive():
            self._connection.interrupt()  # again, in case that it had not begun
            with contextlib.suppress(Empty):
                idle.get(timeout=_INTERRUPT_SECONDS)
                return

    def close(self) -> None:
        """End the query. More than once does no harm."""
        self._interrupt()
        self._calls.put(None)
        self._worker.join()
        self._reader.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def query(
    store: Store,
    text: str,
    *,
    memory: int | str = MEMORY,
    tables: Callable[[Store], Iterable[RowTable]] | None = None,
) -> Query:
    """Ask a store by SQL.

    >>> import millstream
    >>> with millstream.open(":memory:") as store:
    ...     topic = store.create_topic("orders")
    ...     last = store.append_many("orders", [b'{"amount": 3}', b'{"amount": 4}'])
    ...     list(query(store, "select sum((value->>'$.amount')::int)::int from orders").rows())
    [(7,)]

    Args:
        store: May be open read-only, while other processes write.
        text: One statement in the SQL of DuckDB. Local files can be read beside topics.
        memory: What DuckDB may use, "1GB" or bytes; some MB per topic read come on top. Nothing is
            written to disk: a query that needs more fails.
        tables: Further tables; `millstream.processor.state_tables` gives the state of pipelines.

    Raises:
        MissingExtraError: DuckDB, pyarrow or NumPy is not installed.
        UsageError: The statement is wrong, names a table that is not there, or would change
            something.
        DataError: What is read is damaged; also later, while the result is read.
    """
    try:
        import duckdb  # noqa: PLC0415 - an extra
        import numpy as np  # noqa: PLC0415 - an extra

        from . import arrow_tables  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing_extra("SQL", error.name or "duckdb", "sql") from None
    del arrow_tables, np
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise UsageError(f"{text!r:.60} is no query: give it as a str, in UTF-8") from None
    connection = duckdb.connect(
        config={
            "memory_limit": f"{parse_size_bytes(memory)}B",
            "temp_directory": "",
            "python_enable_replacements": False,  # tables are topics, never variables of ours
            "autoinstall_known_extensions": False,  # nothing is fetched from anywhere
        }
    )
    failures: list[MillstreamError] = []
    try:
        # It would be written to stdout, among the results; only a connection can be told so.
        connection.execute("set enable_progress_bar = false")
        # Timestamps of records are UTC without saying so: compared with now(), or brought into a
        # zone, they would be taken for times of the zone of this machine.
        connection.execute("set timezone = 'UTC'")
        _check_statement(connection, text)
        # To SQL it is a function without arguments, whose value would stand for a field of JSON.
        connection.execute(f"create macro user() as error('{_USER}')::varchar")
        columns = _add_tables(connection, store, failures, tables)
    except duckdb.Error as error:
        connection.close()
        names = [topic.name for topic in store.topics()]
        raise UsageError(_advised(str(error), names)) from None
    except BaseException:
        connection.close()
        raise
    names = [topic.name for topic in store.topics()]
    return Query(connection, text, failures, names, _described(text, columns))


def _started(
    connection: duckdb.DuckDBPyConnection, text: str, described: pa.Schema | None
) -> pa.RecordBatchReader:
    import pyarrow  # noqa: PLC0415 - an extra

    found: Any = connection.sql(text)
    if found is None:  # a statement without a result, which has been executed
        return pyarrow.RecordBatchReader.from_batches(pyarrow.schema([]), [])
    if described is not None:
        # To DuckDB each column of a table that is not its own may be null.
        table = found.to_arrow_table()
        nulls = ["YES" if field.nullable else "NO" for field in described]
        place = table.schema.get_field_index("null")
        return table.set_column(place, "null", pyarrow.array(nulls)).to_reader()
    return found.to_arrow_reader(BATCH_ROWS)


def _described(text: str, columns: Mapping[tuple[str, str], pa.Schema]) -> pa.Schema | None:
    """The columns of the table that a statement describes, if it does no more."""
    found = _DESCRIBE.fullmatch(text)
    if found is None:
        return None
    schema, quoted, plain = found.groups("")
    return columns.get(((schema or "main").lower(), (quoted or plain).lower()))


def _check_statement(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    statements = connection.extract_statements(text)
    if not statements:
        raise UsageError("there is no statement: `select * from TOPIC limit 10` is one")
    if len(statements) > 1:
        raise UsageError("a query is one statement: leave out the others")
    kind = statements[0].type.name
    if kind not in _LOOKING:
        # It would fail for a reason of DuckDB's, or come to nothing at the end of the query.
        raise UsageError(
            f"SQL is for looking, and {kind} has no result: write `select`, or `copy (select ...)"
            " to 'FILE'`; records are appended by produce, import or a pipeline"
        )


def _add_tables(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    failures: list[MillstreamError],
    tables: Callable[[Store], Iterable[RowTable]] | None,
) -> dict[tuple[str, str], pa.Schema]:
    """Returns the columns of tables by schema and name, in lower case."""
    from . import arrow_tables  # noqa: PLC0415 - an extra

    added: dict[tuple[str, str], pa.Schema] = {}

    def add(
        schema: str,
        name: str,
        columns: pa.Schema,
        batches: arrow_tables.Batches,
        filtered: arrow_tables.Filtered | None = None,
    ) -> None:
        table = arrow_tables.ArrowTable(columns, batches, failures.append, filtered)
        added[schema, name.lower()] = columns
        if schema == "main":
            connection.register(name, table)
            return
        # A view of its relation, so that the schema has this name and `show tables` no other.
        connection.execute(f"create schema if not exists {_quoted(schema)}")
        connection.execute(f"use {_quoted(schema)}")
        connection.from_arrow(table).create_view(name)
        connection.execute("use main")

    topics = store.topics()
    spellings = Counter(topic.name.lower() for topic in topics)
    for topic in topics:
        twice = spellings[topic.name.lower()] > 1
        for schema in ("main", "bytes"):
            text = schema == "main"
            declared = topic.schema if text else None
            columns = (
                arrow_tables.record_schema(text=text)
                if declared is None
                else arrow_tables.declared_schema(declared)
            )
            scan = _once(store, topic.name)
            if twice:
                add(schema, topic.name, columns, _ambiguous(topic.name))
            elif declared is None:
                add(schema, topic.name, columns, _records(scan, columns))
            else:
                add(schema, topic.name, columns, _columns(scan), _filtered(scan))
    for table in tables(store) if tables else ():
        columns = arrow_tables.text_schema(table.columns)
        add(table.schema, table.name, columns, _rows(table, columns))
    return added


def _once(store: Store, topic: str) -> Callable[[], Scan]:
    """A scan of a topic. All passes over it end where the first does: one query, one answer."""
    scans: list[Scan] = []

    def scan() -> Scan:
        if not scans:
            scans.append(store.read(topic))
        return scans[0]

    return scan


def _records(scan: Callable[[], Scan], columns: pa.Schema) -> arrow_tables.Batches:
    from . import arrow_tables  # noqa: PLC0415 - an extra

    return lambda names: arrow_tables.record_batches(scan(), columns, names)


def _columns(scan: Callable[[], Scan]) -> arrow_tables.Batches:
    return lambda names: iter(scan().arrow(names))


def _filtered(scan: Callable[[], Scan]) -> arrow_tables.Filtered:
    """Passes that leave out batches by what they hold."""
    return lambda names, condition: iter(scan().arrow(names, condition))


def _ambiguous(topic: str) -> arrow_tables.Batches:
    """What SQL cannot tell apart is not guessed at."""

    def batches(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        del names
        raise UsageError(
            "another topic has this name but for its case, which SQL does not mind: copy one of"
            " them to a topic with another name",
            topic=topic,
        )

    return batches


def _rows(table: RowTable, columns: pa.Schema) -> arrow_tables.Batches:
    from . import arrow_tables  # noqa: PLC0415 - an extra

    return lambda names: arrow_tables.row_batches(columns, iter(table.rows()), names)


def _as_written(name: str) -> str:
    """A name as it is written in SQL."""
    return name if name.isidentifier() else _quoted(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _advised(message: str, topics: Sequence[str] = ()) -> str:
    """What DuckDB says, and what to do about it where we know better."""
    text = message.strip()
    if text.startswith("Catalog Error: Table with name"):
        # What it takes for alike are tables of its own.
        names = ", ".join(_as_written(name) for name in topics[:_TOPICS_NAMED])
        more = f" and {len(topics) - _TOPICS_NAMED} more" if len(topics) > _TOPICS_NAMED else ""
        return f"{text.splitlines()[0]} The topics are {names or 'none'}{more}"
    if text.startswith("Out of Memory"):
        first = text.splitlines()[0]
        return f"{first}; ask for fewer rows or columns, or give more by memory= (--memory)"
    if _USER in text:
        return f"{_USER}: write t.user for a column, value->>'$.user' for a field of JSON"
    if "Values were not provided" in text:
        return f"{text}; a query takes no parameters, write the values themselves"
    advice = _syntax_advice(text, topics)
    if (found := _NO_COLUMN.search(text)) is not None:
        advice = f"If it is a field of JSON: value->>'$.{found[1] or found[2]}'"
    return f"{text}\n{advice}" if advice else text


def _syntax_advice(text: str, topics: Sequence[str]) -> str | None:
    """What to write in the place of a name that SQL does not take for one."""
    near, excerpt = _NEAR.search(text), _EXCERPT.search(text)
    if near is None or excerpt is None:
        return None
    line, word = excerpt[1], near[1].lower()
    for topic in topics:
        odd = not topic.isidentifier() and topic in line and _quoted(topic) not in line
        if odd or word == topic.lower():
            return f"Write the topic as {_quoted(topic)}"
    before = re.findall(r"\w+", line[: len(excerpt[2])])[-1:]
    for name in _WORDS:
        if name in (word, *map(str.lower, before)):
            return f'{name.upper()} is a word of SQL: write the column as t.{name} or "{name}"'
    return None
