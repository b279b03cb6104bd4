"""Functions of users that raise, wherever they are called: never a quiet end of the rows.

`map()` takes a StopIteration of its function for the end of its input, so that one is tried, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from millstream import RecordError, UsageError
from millstream.processor import Aggregate, Context, Pipeline, agg, counting, session, tumbling

ROWS = [{"k": "a", "t": time} for time in (1, 9, 5, 40)]


class Fails(Aggregate[object, int, int]):
    """Counts, and raises in one of its methods."""

    def __init__(self, where: str, error: type[Exception]) -> None:
        self.where = where
        self.error = error

    def fail(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def init(self) -> int:
        self.fail("init")
        return 0

    def add(self, accumulator: int, value: object) -> int:
        self.fail("add")
        return accumulator + 1

    def merge(self, left: int, right: int) -> int:
        self.fail("merge")
        return left + right

    def result(self, accumulator: int) -> int:
        self.fail("result")
        return accumulator


@pytest.mark.parametrize("error", [ValueError, StopIteration])
@pytest.mark.parametrize("where", ["init", "add", "merge", "result"])
def test_an_aggregate_of_ones_own_that_raises_stops_the_run(
    where: str, error: type[Exception]
) -> None:
    """A StopIteration, too: it must not be taken for the end of what there is."""

    def windows(keyed: Any, kind: Any) -> Any:
        return keyed.window(kind).agg(n=Fails(where, error))

    def folded(keyed: Any) -> Any:
        fails = Fails(where, error)
        parts: dict[str, Any] = {"merge": fails.merge, "result": fails.result}
        return keyed.window(session(5)).agg(n=agg.fold(fails.init, fails.add, **parts))

    declared: list[Callable[[Any], Any]] = [
        lambda keyed: windows(keyed, session(5)),
        folded,
    ]
    if where != "merge":
        declared += [
            lambda keyed: windows(keyed, tumbling(10)),
            lambda keyed: windows(keyed, tumbling(10)).emit("update"),
            lambda keyed: windows(keyed, counting(2)),
            lambda keyed: keyed.agg(n=Fails(where, error)),
            lambda keyed: keyed.agg(n=Fails(where, error), ttl=5),
        ]
    for declare in declared:
        pipeline = Pipeline("p")
        declare(pipeline.source("in", time="t", disorder=20).key_by("k")).to("out")
        with pytest.raises(RecordError, match=f"{where}|agg n|n: .*{error.__name__}"):
            pipeline.test({"in": ROWS})


@pytest.mark.parametrize("error", [ValueError, StopIteration])
@pytest.mark.parametrize(
    "declare",
    [
        lambda keyed, into: keyed.join(keyed, within=5, into=into),
        lambda keyed, into: keyed.join_asof(keyed, into=into),
        lambda keyed, into: keyed.join_table(keyed.count(), into=into),
    ],
    ids=["join", "join_asof", "join_table"],
)
def test_what_joins_a_pair_and_raises_names_the_record(
    declare: Callable[[Any, Any], Any], error: type[Exception]
) -> None:
    def into(left: dict[str, int], right: object) -> int:
        if left["t"] == 9:
            raise error
        return left["t"]

    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t", disorder=20).key_by("k")
    declare(keyed, into).to("out")
    with pytest.raises(RecordError, match=rf"into: .*{error.__name__}"):
        pipeline.test({"in": ROWS})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": 7}, "name=7: a timer's name is a str"),
        ({"name": None}, "name=None: a timer's name is a str"),
        ({"name": "\ud800"}, "a timer's name is a str that UTF-8 can hold"),
        ({"clock": "sun"}, "clock='sun': a timer goes by 'event' or 'wall'"),
    ],
)
@pytest.mark.parametrize("use", ["set_timer", "cancel_timer"])
def test_a_timer_that_state_could_not_give_back_is_refused_where_it_is_set(
    use: str, options: dict[str, Any], problem: str
) -> None:
    def ask(context: Context[str, None], row: dict[str, int]) -> None:
        getattr(context, use)(5, **options)

    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by("k")
    keyed.process(ask, on_timer=lambda context, timer: None).to("out")
    with pytest.raises(RecordError, match=re.escape(problem)):
        pipeline.test({"in": ROWS})


@pytest.mark.parametrize("one", ["alarm", b"alarm", {"k": "alarm"}], ids=repr)
def test_one_row_where_several_are_meant_is_not_taken_apart(one: object) -> None:
    """Of a str the letters would be rows, of a dict its fields."""
    refused = f"must return an iterable of rows, not {type(one).__name__}: a list of one"
    for declare in (
        lambda stream: stream.flat_map(lambda _: one),
        lambda stream: stream.key_by("k").process(lambda _, __: one),
        lambda stream: stream.key_by("k").process(_set_timer, on_timer=lambda _, __: one),
    ):
        pipeline = Pipeline("p")
        declare(pipeline.source("in", time="t")).to("out")
        with pytest.raises(RecordError, match=refused):
            pipeline.test({"in": ROWS})


def _set_timer(context: Context[str, int], _: object) -> None:
    context.set_timer(10)


class UnsaidError(Exception):
    """Cannot say what is wrong."""

    def __str__(self) -> str:
        raise ValueError


def test_an_exception_that_cannot_be_shown_is_told_by_its_name() -> None:
    pipeline = Pipeline("p")

    def fails(_: object) -> object:
        raise UnsaidError

    pipeline.source("in", time="t").map(fails).to("out")
    with pytest.raises(
        RecordError, match=r"map fails: UnsaidError \(topic in, partition 0, offset 0"
    ):
        pipeline.test({"in": ROWS})


def test_a_test_on_lists_refuses_state_that_no_run_could_keep() -> None:
    def times(context: Context[str, dict[str, object]], row: dict[str, int]) -> None:
        context.state["seen"] = {row["t"]}

    pipeline = Pipeline("p")
    pipeline.source("in", time="t").key_by("k").process(times, state=dict).to("out")
    with pytest.raises(UsageError, match=r"the state of 'in\.process': .* it has a set"):
        pipeline.test({"in": ROWS})

    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by("k")
    keyed.agg(seen=agg.collect(lambda row: {row["t"]}, limit=3)).to("out")
    with pytest.raises(UsageError, match=r"the state of 'in\.agg': .* it has a set"):
        pipeline.test({"in": ROWS})


async def later(*_: object) -> bool:
    return False


@pytest.mark.parametrize(
    "declare",
    [
        lambda rows: rows.filter(later),
        lambda rows: rows.map(later),
        lambda rows: rows.flat_map(later),
        lambda rows: rows.key_by(later),
        lambda rows: rows.key_by("k").process(later),
        lambda rows: rows.branch(a=later),
    ],
    ids=["filter", "map", "flat_map", "key_by", "process", "branch"],
)
def test_async_functions_are_refused_where_they_are_given(declare: Callable[[Any], Any]) -> None:
    with pytest.raises(UsageError, match=r"takes an ordinary function: later is async"):
        declare(Pipeline("p").source("in"))


def test_an_error_in_a_timer_is_that_of_on_timer() -> None:
    def wait(context: Context[str, None], row: object) -> None:
        context.set_timer(10)

    def wake(context: Context[str, None], timer: object) -> list[int]:
        raise ValueError

    pipeline = Pipeline("p")
    pipeline.source("in", time="t").key_by("k").process(wait, on_timer=wake).to("out")
    with pytest.raises(RecordError, match=r"process wait, on_timer wake of key 'a': ValueError"):
        pipeline.test({"in": ROWS})


@pytest.mark.parametrize("call", ["run", "verify", "migrate", "query"])
def test_a_path_is_no_store(call: str) -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").key_by("k").count().to("out")
    arguments = ["/data", "in.count"] if call == "query" else ["/data"]
    with pytest.raises(UsageError, match=r"not '/data': open one with millstream\.open\(path\)"):
        getattr(pipeline, call)(*arguments)
