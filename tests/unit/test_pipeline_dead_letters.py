"""What dead letters of a pipeline say, so that a program can give them back."""

from __future__ import annotations

from typing import Any

import pytest

import millstream
from millstream import Store
from millstream.processor import Pipeline, compare_fork, fork


def sharing(name: str = "p", dead: str = "dead") -> Pipeline:
    """Two sources with one topic of dead letters."""
    pipeline = Pipeline(name)
    for topic in ("a", "b"):
        rows = pipeline.source(topic, time="t")
        rows.to(f"{topic}.out")
        rows.dead_letters.to(dead)
    return pipeline


def fill(store: Store) -> None:
    store.create_topic("a", partitions=2)
    store.create_topic("b")
    store.append("a", b'{"t":1}', partition=1)
    store.append("a", b"bad", key=b"k", partition=1, timestamp_ms=5)
    own = (("error", b"mine"), ("dead-letter-topic", b"elsewhere"), ("dead-letter-offset", None))
    store.append("b", b"bad", key=b"l", headers=own)


def test_they_say_where_they_come_from_behind_headers_of_their_own() -> None:
    with millstream.open(":memory:") as store:
        fill(store)
        sharing().run(store, until="end")
        first, second = store.read("dead")

    assert ("error", "dead-letter-topic", "dead-letter-partition", "dead-letter-offset") == tuple(
        name for name, _ in first.headers
    )
    assert (b"bad", b"k", 5) == (first.value, first.key, first.timestamp_ms)
    places = [
        tuple(
            dict(each.headers)[f"dead-letter-{what}"] for what in ("topic", "partition", "offset")
        )
        for each in (first, second)
    ]
    assert [(b"a", b"1", b"1"), (b"b", b"0", b"0")] == places
    assert (
        ("error", b"mine"),
        ("dead-letter-topic", b"elsewhere"),
        ("dead-letter-offset", None),
    ) == (second.headers[:-4])


def forget_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write as versions did whose dead letters had the header `error` alone."""
    monkeypatch.setattr("millstream.processor.outputs._origin", lambda _: ())


@pytest.mark.parametrize("config", [{}, {"compact": True}])
def test_those_of_early_versions_are_no_difference(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    with millstream.open(":memory:") as store:
        fill(store)
        store.create_topic("dead", **config)
        with monkeypatch.context() as before:
            forget_origins(before)
            sharing().run(store, until="end")
        assert all(each.headers[-1][0] == "error" for each in store.read("dead"))
        store.append("a", b"bad, too", key=b"m")
        sharing().run(store, until="end")
        replay = sharing().verify(store)

        assert ([], []) == (replay.differences, replay.skipped)
        assert 4 == replay.records_compared


def test_a_fork_of_an_early_version_is_no_different(monkeypatch: pytest.MonkeyPatch) -> None:
    with millstream.open(":memory:") as store:
        fill(store)
        sharing().run(store, until="end")
        fork(store, "p", "f")
        store.append("b", b"bad, too", key=b"m")
        with monkeypatch.context() as before:
            forget_origins(before)
            sharing().run(store, until="end")
        sharing("f", "copy").run(store, until="end")

        assert [] == compare_fork(store, "f", {"dead": "copy"}).differences
