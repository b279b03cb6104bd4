"""What cannot work is refused where it is declared, by the words of the mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from millstream import UsageError
from millstream.processor import Pipeline, SourceStream, agg, tumbling


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda s: s.map("upper"), r"map\(\) takes a function, not 'upper'"),
        (lambda s: s.flat_map(None), r"flat_map\(\) takes a function"),
        (lambda s: s.filter(True), r"filter\(\) takes a function, not True"),
        (lambda s: s.key_by("k").map(1), r"map\(\) takes a function, not 1"),
        (lambda s: s.key_by(["a", "b"]), r"a field name or a function, .* as a tuple"),
        (lambda s: s.key_by(None), r"key_by\(\) takes a field name or a function"),
        (
            lambda s: s.key_by("k").window("1m"),
            r"window\(\) takes tumbling\(...\), .* or counting\(...\), not '1m'",
        ),
        (
            lambda s: s.key_by("k").window(tumbling(1)).agg(n=agg.count),
            r"n must be an aggregate such as agg.count\(\)",
        ),
        (
            lambda s: s.key_by("k").window(tumbling(1)).agg(n=agg.Sum(5)),  # type: ignore[arg-type]  # the point
            "agg n takes a field name or a function, not 5",
        ),
        (lambda s: s.to("two words"), "'two words' is not a topic name"),
        (lambda s: s.to("@state/p/in.window"), "is not a topic name"),
        (lambda s: s.dead_letters.to(""), "'' is not a topic name"),
    ],
)
def test_a_mistake_is_told_at_once(
    declare: Callable[[SourceStream[Any]], object], message: str
) -> None:
    source = Pipeline("p").source("in")
    with pytest.raises(UsageError, match=message):
        declare(source)


def test_a_source_takes_a_topic_and_a_way_to_the_time() -> None:
    with pytest.raises(UsageError, match="'a/b' is not a topic name"):
        Pipeline("p").source("a/b")
    with pytest.raises(UsageError, match="source in: time takes a field name or a function"):
        Pipeline("p").source("in", time=5)  # type: ignore[call-overload]  # the point
