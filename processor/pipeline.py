"""A pipeline: declared as a value, run over a store or over lists."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from datetime import datetime, timedelta
from types import UnionType
from typing import Any, Literal, TypeVar, Unpack, overload

from millstream import Position, Store, UsageError

from .connectors import Source
from .driver import Driver
from .fields import Field
from .holding import CACHE_BYTES, StatePlace, state_holding
from .lanes import lane_notes
from .migrate import Migration, migrate
from .plan import Plan, PlanBuilder
from .replay import Replay, replay
from .runtime import Metrics, RunOptions, run_over_store
from .serde import Json
from .source_options import Reading, SourceOptions, source_node
from .state_view import StateItem, read_state
from .stream import KeyedStream, SourceStream
from .table_declaration import TableOptions, TableSource, source_table_node
from .tables import SourceTable
from .testkit import TestOutput, run_over_lists

T = TypeVar("T")
K = TypeVar("K")


class Pipeline:
    """Streams from sources to topics, under one name.

    The name is the identity of the pipeline in a store: of its state, its offsets and its lock.

    Args:
        name: 1 to 100 of A-Z a-z 0-9 . _ -
        state: Where keyed state is held while it runs: "memory" (the default), or "sqlite", which
            keeps what is in use in memory and the rest in a file beside the store. It changes
            speed and memory alone; see docs/concepts/state.md.
        state_cache_bytes: With "sqlite", about how much memory that state may take: an int, or
            text such as "256MiB". The keys of one step come on top.

    Raises:
        UsageError: Not a name, another place, or less than 1 MiB.

    >>> from millstream.processor import Pipeline, agg, tumbling
    >>> pipeline = Pipeline("revenue")
    >>> orders = pipeline.source("orders", time="ts", disorder="10s")
    >>> totals = orders.key_by("user").window(tumbling("1m")).agg(total=agg.sum("amount"))
    >>> _ = totals.to("totals")
    >>> pipeline.test({"orders": [{"user": "u1", "amount": 2, "ts": 5}]})["totals"]
    [{'key': 'u1', 'window_start': 0, 'window_end': 60000, 'total': 2}]
    """

    def __init__(
        self,
        name: str,
        *,
        state: StatePlace = "memory",
        state_cache_bytes: int | str = CACHE_BYTES,
    ) -> None:
        self._builder = PlanBuilder(name, state_holding(state, state_cache_bytes))

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r})"

    def __copy__(self) -> Pipeline:
        """Another one, which goes its own way: what is declared behind one is not in the other."""
        other = object.__new__(type(self))
        other._builder = copy(self._builder)
        return other

    @property
    def name(self) -> str:
        """The name given."""
        return self._builder.name

    @property
    def plan(self) -> Plan:
        """What has been declared so far, as nodes that can be walked."""
        return self._builder.plan()

    @overload
    def source(
        self,
        topic: str | Source,
        *,
        time: str | Callable[[Json], int | str | datetime] | None = None,
        disorder: str | int | timedelta = 0,
        **options: Unpack[SourceOptions],
    ) -> SourceStream[dict[str, Json]]: ...
    @overload
    def source(
        self,
        topic: str | Source,
        *,
        type: type[T],
        time: str | Callable[[T], int | str | datetime] | None = None,
        disorder: str | int | timedelta = 0,
        **options: Unpack[SourceOptions],
    ) -> SourceStream[T]: ...
    @overload
    def source(
        self,
        topic: str | Source,
        *,
        type: UnionType,
        time: Field = None,
        disorder: str | int | timedelta = 0,
        **options: Unpack[SourceOptions],
    ) -> SourceStream[Any]: ...
    def source(
        self,
        topic: str | Source,
        *,
        type: type[Any] | UnionType = dict,  # noqa: A002 - the word users expect here
        time: Field = None,
        disorder: str | int | timedelta = 0,
        **options: Unpack[SourceOptions],
    ) -> SourceStream[Any]:
        """Read a topic from its earliest record on, or a source outside the store.

        Args:
            topic: Must exist when the pipeline runs. Or a source, such as
                `jsonl_files("in/*.jsonl")`: a run takes it in, exactly once, into a topic of its
                own.
            type: What a value is: a msgspec Struct, dataclass, dict, ... as JSON; `bytes` as they
                are; `str` as UTF-8.
            time: Event time of a value: a field or function that gives int milliseconds, an aware
                datetime or RFC 3339 text. None: the timestamp of the record.
            disorder: How much older than the newest row so far a row may be and still be on time.
                W, the time windows close by, stays that much behind.
            **options: What to do about time that is missing, wrong or standing still.

                missing_time: "dead_letter" (the default), or "append_time" to give a value without
                an event time that of its append.

                max_ahead: A row further than this ahead of the clock of whoever appended it is a
                dead letter, and does not move W: one bad clock must not close all windows.

                idle: A partition that has been read to its end and has got nothing for so long
                holds W back no more, until its next row. Without it the slowest partition rules.

                clock: "event" (the default), or "wall" to let W rise with the wall clock, too,
                `disorder` behind it, while all input has been read and something waits for it:
                then windows close without new rows.

        Raises:
            UsageError: Not a topic name, or one that is read already; the type cannot be decoded,
                or it lacks the field.
        """
        node = source_node(self._builder, Reading(topic, type, time, disorder), options)
        return SourceStream(self._builder, self._builder.add(node, type))

    @overload
    def table(
        self,
        topic: str | Source,
        *,
        key: str | Callable[[Json], str] | None = None,
        **options: Unpack[TableOptions],
    ) -> SourceTable[str, dict[str, Json]]: ...
    @overload
    def table(
        self,
        topic: str | Source,
        *,
        type: type[T],
        key: str | Callable[[T], str] | None = None,
        **options: Unpack[TableOptions],
    ) -> SourceTable[str, T]: ...
    @overload
    def table(
        self,
        topic: str | Source,
        *,
        key_type: type[K],
        type: type[T],
        key: str | Callable[[T], K] | None = None,
        **options: Unpack[TableOptions],
    ) -> SourceTable[K, T]: ...
    @overload
    def table(
        self,
        topic: str | Source,
        *,
        type: UnionType,
        key: Field = None,
        key_type: type[Any] = str,
        **options: Unpack[TableOptions],
    ) -> SourceTable[Any, Any]: ...
    def table(
        self,
        topic: str | Source,
        *,
        type: type[Any] | UnionType = dict,  # noqa: A002 - the word users expect here
        key: Field = None,
        key_type: type[Any] = str,
        **options: Unpack[TableOptions],
    ) -> SourceTable[Any, Any]:
        """Read a topic as a table: the last record of a key is its value.

        A record without a value (a tombstone) deletes its key. A record without a key is a dead
        letter.

        Args:
            topic: Must exist when the pipeline runs; read from its earliest record on. Or a source;
                see `source`.
            type: What a value is; see `source`.
            key: A field or function of the value; None: the key of the record. A tombstone has no
                value, so its key is that of the record always.
            key_type: What a key is: `str` is UTF-8, `bytes` are taken as they are, int, float,
                bool and `tuple[...]` are JSON.
            **options: All may be left out.

                versioned: Whether joins look up the value a row's event time belongs to, and not
                the latest; see `KeyedStream.join_table`.

                ttl: Joins forget a key when W reaches its newest event time and this.

                time, disorder and the others: see `source`. The event time of a tombstone is the
                timestamp of its record.

        Raises:
            UsageError: See `source`; a key type that cannot group rows.

        >>> from millstream.processor import Pipeline, Row
        >>> pipeline = Pipeline("prices")
        >>> _ = pipeline.table("quotes", type=float).filter(lambda price: price > 1).to("dear")
        >>> quotes = [Row(2.5, key=b"a"), Row(0.5, key=b"a"), Row(3.0, key=b"b")]
        >>> [(each.key, each.value) for each in pipeline.test({"quotes": quotes}).records("dear")]
        [(b'a', b'2.5'), (b'a', None), (b'b', b'3.0')]
        """
        declared = TableSource(topic, type, key, key_type)
        node, ttl_ms = source_table_node(self._builder, declared, options)
        updates = KeyedStream[Any, Any](self._builder, node)
        return SourceTable(updates, ttl_ms, versioned=options.get("versioned", False))

    def explain(self, store: Store | None = None) -> str:
        """The plan as an indented tree, with the names of its state.

        With `state="sqlite"` it says of each state whether it spills or stays in memory.

        Args:
            store: Say of each operator whether it runs on columns over the topics of this store,
                or on rows, and why. Only topics with a schema have columns.

        Raises:
            UnknownTopicError: The store has not all source topics.

        >>> pipeline = Pipeline("counts")
        >>> _ = pipeline.source("words", type=str).key_by(str.lower).count().to("counts")
        >>> print(pipeline.explain())
        pipeline counts
          source words: str, time record timestamp, disorder 0s
            key_by str.lower
              count()  [state words.count]
                to counts
        """
        return self.plan.explain(None if store is None else lane_notes(store, self.plan))

    def mermaid(self) -> str:
        """The plan as a Mermaid flowchart, for documents and notebooks."""
        return self.plan.mermaid()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What notebooks show: the flowchart where they can draw it, else the tree."""
        return {
            "text/plain": self.explain(),
            "text/markdown": f"```mermaid\n{self.mermaid()}\n```",
        }

    def run(self, store: Store, **options: Unpack[RunOptions]) -> Metrics:
        """Run over a store, exactly once: go on where the last run stopped, however it did.

        Outputs, state and input offsets become visible together, an epoch at a time. Only one
        live process can run a pipeline of this name; another gets LockedError.

        Args:
            store: Has the source topics; missing output topics are created with one partition.
            **options: All may be left out.

                until: "end" returns when all that is visible has been read, the sources outside
                the store have nothing now, and the sinks have got everything; None (the default)
                runs until it is stopped.

                batch_records: Most records per step; None (the default) takes up to 4,096.

                epoch_ms: Commit at most this often, 100 by default; sooner when much has gathered.

                tick_ms: Where event time depends on the wall clock (idle partitions, clock="wall"),
                look at it this often; 1000 by default.

                on_end: What `until="end"` does with open windows: "hold" (the default) keeps them
                for the next run, "flush" closes them, and later rows for them are late.

                keep_every: Keep a checkpoint so often, by the clock, such as "1h": `verify`, `fork`
                and `query` can go back to it. Nothing is copied, but state topics grow. None (the
                default) keeps none.

                keep_count: Keep the newest so many of them; 10 by default. Those of
                `keep_checkpoint` come on top.

                stop: Setting this `threading.Event` ends the run after the step under way, with
                its epoch committed. Without it Ctrl-C in the main thread does so.

                on_progress: Called after each commit with the `Metrics` so far.

        Returns:
            The metrics at the end.

        Raises:
            LockedError: Another live process runs it; the message names its pid.
            UnknownTopicError: A source topic is missing.
            ChangedPlanError: State of a plan that differs, shown as a diff; see `migrate`.
            RecordError: A record cannot be processed; nothing of its epoch was made visible. Or
                one cannot be taken in, or delivered.
            ConnectorError: A source or sink outside the store failed. What was committed before
                will be delivered by another run.
            FencedError: A newer run took over while this process was stalled.

        >>> import millstream
        >>> from millstream.processor import Pipeline
        >>> pipeline = Pipeline("shout")
        >>> _ = pipeline.source("words", type=str).map(str.upper).to("shouts")
        >>> with millstream.open(":memory:") as store:
        ...     info = store.create_topic("words")
        ...     metadata = store.append("words", b"hello")
        ...     metrics = pipeline.run(store, until="end")
        ...     [record.value for record in store.read("shouts")]
        [b'"HELLO"']
        """
        _check_store(store)
        return run_over_store(self.plan, store, options)

    def driver(self, *, start_ms: int = 0, partitions: int = 1) -> Driver:
        """Drive the pipeline by hand in a test; see `Driver`.

        Args:
            start_ms: Where its wall clock begins, UTC ms.
            partitions: Of the source topics.
        """
        return Driver(self.plan, start_ms, partitions)

    def verify(
        self,
        store: Store,
        *,
        since: str | int | None = None,
        start: int | str | Position | None = None,
    ) -> Replay:
        """Run again over what has been read, and compare with what has been written.

        Nothing is written; the pipeline may be running meanwhile. It compares up to the last
        commit, record by record: key, value, headers, timestamp, in each output partition. Sinks
        outside the store are compared, too, if they can be read back.

        Args:
            store: May be open read-only.
            since: Start with the state of a checkpoint that was kept, given by its epoch, or of a
                fork of this pipeline, given by its name, instead of with nothing at the beginning
                of the input. See `keep_checkpoint` and `fork`.
            start: Compare what comes of the input from this position on: an offset of each
                partition, "@<time>", "-10". The replay starts at the last checkpoint that was kept
                before it, or at the beginning, and passes over what was written up to there: it
                must give as many records, which may be others.

        Returns:
            What was compared, and the first difference of each output partition and sink.

        Raises:
            UsageError: It has never run, no such checkpoint is kept, or the plan differs from that
                of the checkpoint or fork.
            OffsetOutOfRangeError: The beginning of the input is gone.
            ConnectorError: A sink of somebody else's raised something when it was compared.
        """
        _check_store(store)
        return replay(self.plan, store, since=since, start=start)

    def migrate(
        self,
        store: Store,
        *,
        rename: Mapping[str, str] | None = None,
        same: Collection[str] = (),
        drop: Collection[str] = (),
        dry_run: bool = False,
    ) -> Migration:
        """Carry the state of a former plan over to this one, all or nothing.

        State of operators that are the same stays. Under another name, or with results of other
        names, it is carried over; new operators begin empty. Everything else means something
        else, and is refused unless it is named to be dropped. Event time and the place in the
        input stay; a source that is new is read from its log start.

        The commit is durable. Doing it again does nothing. No process may run the pipeline.

        Args:
            store: Where the pipeline has run; for a dry run it may be open read-only.
            rename: New names of operators with state, by their former ones.
            same: Names of operators that mean what they meant, though their sources are others,
                their functions are called otherwise, or a field is read in another way. You alone
                can know: if it is wrong, state of one thing goes on as that of another. Windows,
                kinds of aggregates and the type of the state must be the same. A source that takes
                the place of another is read from its log start, and W does not fall. Also names
                of source topics that were deleted and created again, with more partitions, say.
            drop: Names of operators whose state is let go for good.
            dry_run: Only tell what would be done; the pipeline may be running.

        Returns:
            What became of each state. A dry run also tells what would be `refused`.

        Raises:
            UsageError: State of which it is not said what shall become of it; nothing was changed.
                Or the pipeline has never run, or it has no operator of a new name.
            LockedError: A process runs the pipeline.
            DataError: The state is damaged or gone.

        >>> import millstream
        >>> from millstream.processor import Pipeline
        >>> def build(name: str) -> Pipeline:
        ...     pipeline = Pipeline("words")
        ...     words = pipeline.source("words", type=str).key_by(str.lower)
        ...     _ = words.count(name=name).to("counts")
        ...     return pipeline
        >>> with millstream.open(":memory:") as store:
        ...     _, _ = store.create_topic("words"), store.append("words", b"Hello")
        ...     _ = build("counts").run(store, until="end")
        ...     migration = build("occurrences").migrate(store, rename={"counts": "occurrences"})
        ...     build("occurrences").query(store, "occurrences", "hello")
        [StateItem(path=('hello',), value=[1])]
        """
        _check_store(store)
        return migrate(self.plan, store, rename or {}, drop, same=same, dry_run=dry_run)

    def query(
        self, store: Store, operator: str, key: object = None, *, epoch: int | None = None
    ) -> list[StateItem]:
        """What an operator keeps, as of the last commit; also while the pipeline runs.

        Args:
            store: May be open read-only.
            operator: The name of its state, as `explain()` tells it.
            key: Only what is kept for this grouping key; None for everything.
            epoch: Of a checkpoint that was kept, to see what it kept then.

        >>> import millstream
        >>> pipeline = Pipeline("counts")
        >>> _ = pipeline.source("words", type=str).key_by(str.lower).count().to("counts")
        >>> with millstream.open(":memory:") as store:
        ...     info = store.create_topic("words")
        ...     appended = store.append_many("words", [b"ant", b"bee", b"ant"])
        ...     metrics = pipeline.run(store, until="end")
        ...     [item.value for item in pipeline.query(store, "words.count", "ant")]
        [[2]]
        """
        _check_store(store)
        return list(read_state(store, self.name, operator, key, epoch=epoch))

    def test(
        self,
        inputs: Mapping[str, Iterable[object]],
        *,
        batch_records: int | None = None,
        on_end: Literal["flush", "hold"] = "flush",
    ) -> TestOutput:
        """Run over lists, without a store.

        Args:
            inputs: For each source topic, or name of a source, its records in order: a value, a
                `(value, timestamp_ms)` pair, a `Row`, or a `Record` as read from a log. Bytes are
                taken as they are, text as UTF-8 by a source of type `str`, anything else as JSON.
                The topics follow each other.
            batch_records: Rows per step. The result is the same for any number.
            on_end: "flush" closes all windows at the end; "hold" leaves them open, as a run over a
                store does.

        Returns:
            The values written to each topic or sink, by name; `.records(name)` has keys and
            timestamps too.

        Raises:
            RecordError: A record cannot be processed; or a sink without dead letters could never
                take it. Sinks are not opened.
        """
        return run_over_lists(self.plan, inputs, batch_records=batch_records, on_end=on_end)


def _check_store(store: object) -> None:
    """Refuse a path, say, with what to do.

    Raises:
        UsageError: It is no store.
    """
    if not isinstance(store, Store):
        raise UsageError(
            f"a pipeline runs over a store, not {store!r}: open one with millstream.open(path)"
        )
