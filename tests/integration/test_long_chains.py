"""Pipelines of thousands of operators: deeper than the stack of the interpreter."""

from __future__ import annotations

import pytest

import millstream
from millstream import Store
from millstream.processor import Pipeline

PAIRS = 1_000
"""Two operators each."""


def increased(number: int) -> int:
    return number + 1


def is_not_negative(number: int) -> bool:
    return number >= 0


def even(number: int) -> bool:
    if number == PAIRS + 13:
        raise ValueError("unlucky")
    return number % 2 == 0


def chain() -> Pipeline:
    pipeline = Pipeline("chain")
    source = numbers = pipeline.source("numbers", type=int)
    for _ in range(PAIRS):
        numbers = numbers.map(increased).filter(is_not_negative)
    numbers.key_by(even).count(name="count").to("counts")
    source.dead_letters.to("unlucky")
    return pipeline


def append(store: Store, *numbers: int) -> None:
    store.append_many("numbers", [str(number).encode() for number in numbers])


def written(store: Store, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    return [(record.key, record.value) for record in store.read(topic)]


def test_a_chain_of_2000_operators_is_explained() -> None:
    lines = chain().explain().splitlines()
    assert 2 * PAIRS + 7 == len(lines)
    assert "  " * (2 * PAIRS + 4) + "to counts" in lines
    assert f"  n{2 * PAIRS - 1} --> n{2 * PAIRS}" in chain().mermaid().splitlines()


@pytest.mark.slow
def test_a_chain_of_2000_operators_runs_and_goes_on() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("numbers")
        append(store, 1, -2 * PAIRS, 2, 13)
        chain().run(store, until="end")
        append(store, 4)
        chain().run(store, until="end")
        assert [(b"false", b"1"), (b"true", b"1"), (b"true", b"2")] == written(store, "counts")
        assert [(None, b"13")] == written(store, "unlucky")
        assert chain().verify(store).ok
