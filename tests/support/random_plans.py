"""Random pipelines, each built twice: with the API, and of models that know nothing of the engine.

What users' functions do is written once, over dicts; the pipeline runs it over dicts or over
Structs. Every choice comes from one `Random`. What runs both is random_runs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from random import Random
from typing import Any

from operator_models import (
    STATUSES,
    AsofModel,
    DedupModel,
    GroupModel,
    IntervalModel,
    Model,
    ProcessModel,
    Row,
    RunningModel,
    TableJoinModel,
    Value,
    changed,
    paired,
    summed,
)
from random_aggregates import check_aggregates, drawn
from random_functions import (
    both,
    counted,
    fails,
    gather,
    gathered,
    passes,
    several,
    times_three,
)
from random_nodes import Inputs, Item, Known, KnownTable, Node, plain
from window_models import DAY, CountModel, DailyModel, FixedModel, SessionModel, day_edges

from millstream.processor import (
    FixedWindows,
    Pipeline,
    Windowed,
    agg,
    counting,
    daily,
    session,
)


class RandomPlan:
    """A pipeline and its model.

    Args:
        random: All choices.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        state: Any = "sqlite" if random.random() < 0.5 else "memory"
        self.pipeline = Pipeline("p", state=state)
        self.typed = random.random() < 0.5
        self.zone, self.offset, around = random.choice(ZONES)
        self.unit = random.choice((1, 1, 1, DAY // 96, DAY // 8))
        """Of all times, in ms: some pipelines look at a day or more, others at the turn of one."""
        edge = min(day_edges(self.zone, self.offset, around))
        self.base = 0 if random.random() < 0.5 else edge - random.randrange(40) * self.unit
        self.wall = set[int]()
        """The sources that go by the wall clock, too."""
        self.nodes: list[Node] = []
        self.streams: list[Known] = []
        self.tables: list[KnownTable] = []
        self.sinks: list[tuple[int, str]] = []
        """Node and topic."""
        self.topics: dict[str, int] = {}
        """The input topics and their nodes, which are the first."""
        self.disorders: list[int] = []
        self.failing: set[str] = set()
        """The input topics whose dead letters are written."""
        self.checked_aggregates = 0
        """How many results of aggregates a run has held against their rows."""
        for topic in ["a", "b", "c"][: random.randrange(1, 4)]:
            self._source(topic)
        if random.random() < 0.4:
            self._source_table()
        if random.random() < 0.4:
            self._may_fail()
        operators = [getattr(self, name) for name in OPERATORS]
        for _ in range(random.randrange(2, 7)):
            random.choice(operators)()
        self._write()

    # --- sources and sinks -----------------------------------------------------------------------

    def _source(self, topic: str) -> None:
        disorder = self._declare(topic)
        kind = Item if self.typed else dict
        wall = self.random.random() < 0.2
        stream: Any = self.pipeline.source(
            topic, type=kind, time="t", disorder=disorder, clock="wall" if wall else "event"
        )
        if wall:
            self.wall.add(self.topics[topic])
        self.streams.append(Known(stream, self.topics[topic], keyed=False))

    def _source_table(self) -> None:
        disorder = self._declare("table")
        ttl = self._maybe(self.span(1, 60))
        versioned = self.random.random() < 0.5
        kind = Item if self.typed else dict
        table: Any = self.pipeline.table(
            "table", type=kind, time="t", disorder=disorder, ttl=ttl, versioned=versioned
        )
        self.tables.append(KnownTable(table, self.topics["table"], ttl, versioned))

    def _may_fail(self) -> None:
        """Let the rows of a source fail, when they are decoded or after it, and write those."""
        number = self.random.randrange(len(self.streams))
        stream, node, _ = self.streams[number]
        topic = list(self.topics)[node]
        self.failing.add(topic)
        out = self.random.choice(("mixed", f"dead_{topic}"))
        stream.dead_letters.to(out)
        self.sinks.append((self.each(node, lambda row: [row] if fails(row.value) else []), out))
        good = self.each(node, lambda row: [] if fails(row.value) else [row])
        passed = stream.map(self.wrap(passes), on_error="dead_letter")
        self.streams[number] = Known(passed, good, keyed=False)

    def _declare(self, topic: str) -> int:
        node = len(self.nodes)
        self.topics[topic] = node
        self.disorders.append(self.random.choice((0, 3, 15)) * self.unit)
        self.nodes.append(Node((), (node,), 0, lambda _, __, ___: []))
        return self.disorders[-1]

    def _write(self) -> None:
        """Everything that nobody reads, and some of the rest."""
        read = {each for node in self.nodes for each in node.inputs}
        places = [(each.stream, each.node) for each in self.streams]
        places += [(each.table, each.node) for each in self.tables]
        for stream, node in places:
            if node < len(self.topics) and node not in read and len(places) > len(self.topics):
                continue
            if node not in read or self.random.random() < 0.3:
                topic = self.random.choice(("mixed", f"out{node}"))
                stream.to(topic)
                self.sinks.append((node, topic))

    # --- choices and helpers ---------------------------------------------------------------------

    def span(self, least: int, stop: int) -> int:
        """A duration, in units."""
        return self.random.randrange(least, stop) * self.unit

    def _maybe(self, chosen: Any) -> Any:
        return chosen if self.random.random() < 0.5 else None

    def any_stream(self) -> Known:
        """One of the streams, rather a late one."""
        return self.streams[max(self.random.randrange(len(self.streams)) for _ in range(2))]

    def keyed_stream(self) -> Known:
        """One with keys, made if there is none."""
        known = [each for each in self.streams if each.keyed]
        if not known or self.random.random() < 0.3:
            self.key_by()
            return self.streams[-1]
        return known[max(self.random.randrange(len(known)) for _ in range(2))]

    def any_table(self) -> KnownTable:
        """A table, made if there is none."""
        if not self.tables or self.random.random() < 0.3:
            self.running()
        return self.random.choice(self.tables)

    def made(self, value: Value) -> Any:
        """A value as the pipeline has it."""
        return Item(**value) if self.typed else dict(value)

    def wrap(self, function: Callable[..., Value | None]) -> Callable[..., Any]:
        """A function of values as the pipeline calls it."""

        def call(*values: Any) -> Any:
            result = function(*map(plain, values))
            return None if result is None else self.made(result)

        return self._annotated(call, Item)

    def wrap_many(self, function: Callable[[Value], Iterable[Value]]) -> Callable[..., Any]:
        """The same for a function that gives several."""

        def call(value: Any) -> Any:
            return [self.made(each) for each in function(plain(value))]

        return self._annotated(call, list[Item])

    def _annotated(self, function: Callable[..., Any], result: object) -> Callable[..., Any]:
        function.__annotations__ = {"return": result} if self.typed else {}
        return function

    def add(
        self,
        inputs: Sequence[int],
        run: Callable[[Inputs, int, int], list[Row]] | Model,
        timed: Sequence[int] | None = None,
    ) -> int:
        """Another node of the model; `timed` are those of its inputs whose W is its own."""
        above = [self.nodes[each] for each in (inputs if timed is None else timed)]
        sources = tuple(sorted({source for node in above for source in node.sources}))
        held_ms = max(node.delay for node in above)
        model = run if isinstance(run, Model) else None
        delay = held_ms + (model.delay if model else 0)
        function = run.step if isinstance(run, Model) else run
        self.nodes.append(Node(tuple(inputs), sources, delay, function, held_ms, model))
        return len(self.nodes) - 1

    def each(self, node: int, function: Callable[[Row], Iterable[Row]]) -> int:
        """A node that makes rows of single rows."""
        return self.add(
            [node], lambda inputs, _, __: [made for row in inputs[0] for made in function(row)]
        )

    def put(self, stream: Any, node: int, *, keyed: bool) -> None:
        """Another stream to choose from."""
        self.streams.append(Known(stream, node, keyed))

    def put_late(self, stream: Any, node: int, *, keyed: bool) -> None:
        """The late rows of a node, mostly; without deletions."""
        if self.random.random() < 0.7:
            model = self.nodes[node].model
            assert model is not None

            def late(_: Inputs, __: int, ___: int) -> list[Row]:
                return [row for row in model.late if row.value is not None]

            port = self.add([node], late)
            self.nodes[port].delay -= model.delay
            self.put(stream.late.filter(lambda value: value is not None), port, keyed=keyed)

    # --- operators without state -----------------------------------------------------------------

    def map(self) -> None:
        stream, node, keyed = self.any_stream()
        function = times_three
        made = self.each(node, lambda row: [row._replace(value=function(row.value))])
        if self.random.random() < 0.5:
            self.put(stream.map(self.wrap(function)), made, keyed=keyed)
        else:
            batch = lambda values: [self.made(function(plain(each))) for each in values]  # noqa: E731
            mapped = stream.map_batch(self._annotated(batch, list[Item]))
            self.put(mapped, made, keyed=keyed)

    def filter(self) -> None:
        stream, node, keyed = self.any_stream()
        made = self.each(node, lambda row: [row] if row.value["x"] % 3 else [])
        kept = stream.filter(lambda value: value["x"] % 3).peek(lambda _: None)
        self.put(kept, made, keyed=keyed)

    def flat_map(self) -> None:
        stream, node, keyed = self.any_stream()
        made = self.each(
            node, lambda row: [row._replace(value=value) for value in several(row.value)]
        )
        self.put(stream.flat_map(self.wrap_many(several)), made, keyed=keyed)

    def branch(self) -> None:
        stream, node, keyed = self.any_stream()
        ports = stream.branch(
            even=lambda value: value["x"] % 2 == 0, five=lambda value: value["x"] % 5 == 0
        )

        def port(value: Value) -> str:
            return "even" if value["x"] % 2 == 0 else "five" if value["x"] % 5 == 0 else "rest"

        for name, chosen in ports.items():
            made = self.each(node, lambda row, name=name: [row] if port(row.value) == name else [])  # type: ignore[misc]
            self.put(chosen, made, keyed=keyed)

    def merge(self) -> None:
        first = self.any_stream()
        others = [self.any_stream() for _ in range(self.random.randrange(1, 3))]
        if first.keyed and not all(each.keyed for each in others):
            first, others = next(e for e in others if not e.keyed), [first, *others][:2]
        stream = first.stream.merge(*(each.stream for each in others))

        def run(inputs: Inputs, _: int, __: int) -> list[Row]:
            rows = [row for each in inputs for row in each]
            return rows if first.keyed else [row._replace(key=None) for row in rows]

        made = self.add([first.node, *(each.node for each in others)], run)
        self.put(stream, made, keyed=first.keyed)

    def key_by(self) -> None:
        stream, node, _ = self.any_stream()
        key, function = self.random.choice(
            (
                ("k", lambda value: value["k"]),
                ("k", lambda value: value["k"]),
                (lambda value: value["x"] % 3, lambda value: value["x"] % 3),
                (
                    lambda value: (value["k"], value["x"] % 2),
                    lambda value: (value["k"], value["x"] % 2),
                ),
            )
        )
        made = self.each(node, lambda row: [row._replace(key=function(row.value))])
        self.put(stream.key_by(key), made, keyed=True)

    # --- windows ---------------------------------------------------------------------------------

    def fixed_windows(self) -> None:
        random = self.random
        size, grace = self.span(1, 40), random.choice((0, 0, 7)) * self.unit
        slide = size if random.random() < 0.5 else self.span(1, 40)
        every = self._every()
        self._fixed(FixedWindows(size, slide, 0), FixedModel(size, slide, grace, every))

    def days(self) -> None:
        grace = self.random.choice((0, 0, 7)) * self.unit
        model = DailyModel(0, 0, grace, self._every(), zone=self.zone, offset=self.offset)
        self._fixed(daily(tz=self.zone, offset=self.offset), model)

    def _every(self) -> tuple[str, int] | None:
        return self.random.choice(
            (
                None,
                None,
                ("rows", self.random.randrange(1, 4)),
                ("ms", self.span(5, 30)),
                ("corrections", self.span(1, 40)),
            )
        )

    def _fixed(self, windows: Any, model: FixedModel) -> None:
        every = model.every
        options = {"grace": model.grace}
        if every and every[0] == "corrections":
            options["corrections"] = every[1]
        stream, node, _ = self.keyed_stream()
        results = self._aggregated(stream.window(windows, **options))
        if every and every[0] == "rows":
            results = results.emit("update", every=every[1])
        elif every and every[0] == "ms":
            results = results.emit("update", every=f"{every[1]}ms")
        self._windowed(results, node, model)

    def sessions(self) -> None:
        random = self.random
        gap, grace = self.span(1, 25), random.choice((0, 0, 7)) * self.unit
        every = self._maybe(random.randrange(1, 4))
        stream, node, _ = self.keyed_stream()
        results = self._aggregated(stream.window(session(gap), grace=grace))
        if every:
            results = results.emit("update", every=every)
        self._windowed(results, node, SessionModel(gap, grace, every))

    def counted(self) -> None:
        size = self.random.randrange(1, 5)
        stream, node, _ = self.keyed_stream()
        results = self._aggregated(stream.window(counting(size)))
        self._windowed(results, node, CountModel(size))

    def _aggregated(self, windows: Any) -> Any:
        return windows.agg(rows=agg.collect(plain, limit=10_000), **drawn(self.random))

    def _windowed(self, results: Any, node: int, model: Model) -> None:
        def made(window: Windowed[Any, Any]) -> Any:
            status = getattr(window, "status", "")
            self.checked_aggregates += check_aggregates(window, window.rows)
            value = summed(window.key, window.rows, window.end, status)
            if isinstance(model, DailyModel):
                value["x"] += (window.end - window.start - DAY) // 60_000
            return self.made(value)

        assert STATUSES
        mapped = self.add([node], model)
        self.put(results.map(self._annotated(made, Item)), mapped, keyed=True)
        self.put_late(results, mapped, keyed=False)

    # --- tables ----------------------------------------------------------------------------------

    def running(self) -> None:
        ttl = self._maybe(self.span(1, 60))
        stream, node, _ = self.keyed_stream()
        kind = self.random.choice(("count", "reduce", "fold", "agg"))
        say: Callable[[Any, list[Value]], Value | None]
        if kind == "count":
            table = stream.count(ttl=ttl).map(self.wrap(counted))
            say = lambda _, values: counted(len(values))  # noqa: E731
        elif kind == "reduce":
            table = stream.reduce(self.wrap(both), ttl=ttl)
            say = lambda _, values: reduce(both, values)  # noqa: E731
        elif kind == "fold":
            init = self._annotated(lambda: self.made(counted(0)), Item)
            table = stream.fold(init, self._annotated(gather, Item), ttl=ttl)
            say = gathered
        else:
            more = drawn(self.random)
            table = stream.agg(
                n=agg.count(), rows=agg.collect(plain, limit=10_000), **more, ttl=ttl
            )

            def made(row: Any) -> Any:
                self.checked_aggregates += check_aggregates(row, row.rows)
                return self.made(summed(row.key, row.rows, row.n))

            table = table.map(self._annotated(made, Item))
            say = lambda key, values: summed(key, values, len(values))  # noqa: E731
        self._table(KnownTable(table, self.add([node], RunningModel(say, ttl)), ttl))

    def table_filter(self) -> None:
        known = self.any_table()
        made = self.each(
            known.node,
            lambda row: [row if row.value and row.value["x"] % 3 else row._replace(value=None)],
        )
        table = known.table.filter(lambda value: value["x"] % 3)
        self._table(known._replace(table=table, node=made))

    def group_by(self) -> None:
        known = self.any_table()
        if known.ttl is not None:
            return
        group = lambda value: value["x"] % 4  # noqa: E731
        table = known.table.group_by(group).agg(n=agg.count(), total=agg.sum("x"))
        mapped = table.map(
            self._annotated(
                lambda row: self.made({"t": row.n, "k": str(row.key), "x": row.total, "ids": []}),
                Item,
            )
        )
        self._table(KnownTable(mapped, self.add([known.node], GroupModel(group)), None))

    def _table(self, known: KnownTable) -> None:
        self.tables.append(known)
        if self.random.random() < 0.5:
            made = self.each(known.node, lambda row: [] if row.value is None else [row])
            self.put(known.table.updates(), made, keyed=True)

    # --- joins -----------------------------------------------------------------------------------

    def table_join(self) -> None:
        known, (stream, node, _) = self.any_table(), self.keyed_stream()
        left = self.random.random() < 0.5
        into = self.wrap(paired)
        joined = stream.join_table(known.table, how="left" if left else "inner", into=into)
        if known.versioned:
            within = None if known.ttl is None else known.ttl - 1
            made = self.add([node, known.node], AsofModel("backward", within, left))
        else:
            model = TableJoinModel(left, known.ttl)
            made = self.add([node, known.node], model, timed=[node])
        self.put(joined, made, keyed=True)
        self.put_late(joined, made, keyed=True)

    def interval_join(self) -> None:
        lower = self.span(-30, 16)
        upper = lower + self.span(0, 41)
        how = self.random.choice(("inner", "left", "right", "outer"))
        left, right = self.keyed_stream(), self.keyed_stream()
        into = self.wrap(paired)
        joined = left.stream.join(right.stream, lower=lower, upper=upper, how=how, into=into)
        made = self.add([left.node, right.node], IntervalModel(lower, upper, how))
        self.put(joined, made, keyed=True)
        self.put_late(joined, made, keyed=True)

    def asof_join(self) -> None:
        direction = self.random.choice(("backward", "forward", "nearest"))
        within = self.span(0, 21)
        if direction == "backward":
            within = self._maybe(within)
        is_left = self.random.random() < 0.5
        left, right = self.keyed_stream(), self.keyed_stream()
        joined = left.stream.join_asof(
            right.stream,
            direction=direction,
            within=within,
            how="left" if is_left else "inner",
            into=self.wrap(paired),
        )
        made = self.add([left.node, right.node], AsofModel(direction, within, is_left))
        self.put(joined, made, keyed=True)
        self.put_late(joined, made, keyed=True)

    # --- the rest --------------------------------------------------------------------------------

    def dedup(self) -> None:
        stream, node, keyed = self.any_stream()
        within = self.span(1, 30)
        identity = lambda value: value["x"] % 4  # noqa: E731
        once = stream.dedup(identity, within=within)
        made = self.add([node], DedupModel(identity, within, keyed))
        self.put(once, made, keyed=keyed)
        self.put_late(once, made, keyed=keyed)

    def process(self) -> None:
        ttl = self._maybe(self.span(1, 60))
        after, again = self.span(-5, 40), self.span(-5, 20)
        wall = self.random.random() < 0.5
        stream, node, _ = self.keyed_stream()

        def on_row(context: Any, value: Value) -> Iterator[Value]:
            if value["x"] % 7 == 0:
                context.cancel_timer(context.time_ms + after, "n1")
            if wall and value["x"] % 5 == 0:
                context.cancel_timer(context.time_ms + again, "w1", clock="wall")
            context.set_timer(context.time_ms + after, f"n{value['x'] % 2}")
            if wall and value["x"] % 3:
                at = context.time_ms + again
                context.set_timer(at, f"w{value['x'] % 3}", clock="wall")
            context.state.append(value["x"] % 100)
            del context.state[:-4]
            now = context.now_ms % 1000 if wall else 0
            yield changed(value, x=sum(context.state) + now, t=context.watermark_ms or 0)

        def on_timer(context: Any, name: str) -> Iterator[Value]:
            total = sum(context.state)
            context.state.append(1)
            if name != "again" and total % 2 == 0:
                context.set_timer(context.time_ms + again, "again")
            if wall and total % 3 == 0:
                context.set_timer(context.now_ms + again, "again", clock="wall")
            w = context.watermark_ms or 0
            yield {"t": w, "k": f"{context.key}", "x": total, "ids": context.state}

        def call(context: Any, value: Any) -> Any:
            return [self.made(each) for each in on_row(context, plain(value))]

        def call_timer(context: Any, timer: Any) -> Any:
            return [self.made(each) for each in on_timer(context, timer.name)]

        processed = stream.process(
            self._annotated(call, list[Item]),
            state=list[int],
            on_timer=call_timer,
            ttl=ttl,
            wall_clock=wall,
        )
        made = self.add([node], ProcessModel(on_row, on_timer, ttl))
        self.put(processed, made, keyed=True)


OPERATORS = (
    *("map", "filter", "flat_map", "branch", "merge", "key_by"),
    *("fixed_windows", "days", "sessions", "counted", "running", "table_filter", "group_by"),
    *("table_join", "interval_join", "asof_join", "dedup", "process"),
    *(
        "fixed_windows",
        "days",
        "sessions",
        "table_join",
        "interval_join",
        "asof_join",
        "dedup",
        "process",
    ),
)
"""Those with state twice."""

ZONES = (
    ("UTC", 0, 0),
    ("Europe/Berlin", 0, 1_711_846_800_000),  # the clock is put forward
    ("Europe/Berlin", 9_000_000, 1_711_846_800_000),  # days begin at 02:30, which is skipped
    ("Europe/Berlin", 9_000_000, 1_729_990_000_000),  # and at a time that comes twice
    ("America/New_York", -3_600_000, 1_730_600_000_000),
    ("Pacific/Apia", 21_600_000, 1_325_239_200_000),  # a day was left out
    ("Asia/Kathmandu", 0, 1_700_000_000_000),
    ("Australia/Lord_Howe", 7_200_000, -3_000_000_000_000),
)
"""Time zones, when days begin there, and a time when something happens."""
