"""The words that processes share: names, slots, proofs, generations."""

from __future__ import annotations

import pytest

from millstream.tail import (
    COUNTER_BITS,
    GROW_SLOTS,
    HEADER_WORDS,
    SLOT_WORDS,
    PrivateWords,
    Slot,
    SlotWords,
    Tail,
    durable_check,
    private_slot,
    to_signed,
    to_unsigned,
)
from millstream.testing import ManualClock, MemoryStorage


@pytest.fixture
def tail() -> Tail:
    return Tail(MemoryStorage(), ManualClock())


def test_new_words_are_not_usable_before_a_generation_begins(tail: Tail) -> None:
    assert not tail.usable
    tail.reset(1)
    assert tail.usable
    assert (1, 1 << COUNTER_BITS, 0) == (
        tail.get("generation"),
        tail.get("sequence"),
        tail.get("in_progress"),
    )


def test_words_of_another_file_are_not_usable(tail: Tail) -> None:
    tail.reset(1)
    tail.set("inode", tail.get("inode") + 1)

    assert not tail.usable


def test_a_generation_forgets_every_slot_whatever_it_says(tail: Tail) -> None:
    tail.reset(1)
    for number in (0, 7, GROW_SLOTS + 3):
        slot = tail.slot(number)
        slot[Slot.GENERATION], slot[Slot.LOG_END] = 2, 99
    tail.reset(2)

    for number in (0, 7, GROW_SLOTS + 3):
        slot = tail.slot(number)
        assert (0, 99) == (slot[Slot.GENERATION], slot[Slot.LOG_END])


def test_slots_do_not_overlap_and_survive_growth(tail: Tail) -> None:
    early = tail.slot(GROW_SLOTS - 1)
    late = tail.slot(3 * GROW_SLOTS)
    early[Slot.ACTIVE_UID] = 1
    late[Slot.GENERATION] = 2

    assert (1, 0) == (early[Slot.ACTIVE_UID], late[Slot.ACTIVE_UID])
    assert (0, 2) == (early[Slot.GENERATION], late[Slot.GENERATION])


def test_two_handles_of_a_storage_see_the_same_words() -> None:
    storage, clock = MemoryStorage(), ManualClock()
    first, second = Tail(storage, clock), Tail(storage, clock)
    first.reset(1)
    first.slot(5)[Slot.LOG_END] = 7

    assert 7 == second.slot(5)[Slot.LOG_END]
    seen = second.get("topics_version")
    first.bump("topics_version")
    assert seen != second.get("topics_version")


def test_a_durable_claim_needs_its_proof() -> None:
    assert durable_check(1, 5) == durable_check(1, 5)
    assert 3 == len({durable_check(1, 5), durable_check(1, 6), durable_check(2, 5)})


@pytest.mark.parametrize("value", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_unsigned_values_survive_signed_words(value: int) -> None:
    slot = private_slot()
    slot[Slot.PREVIOUS_HASH] = to_signed(value)

    assert value == to_unsigned(slot[Slot.PREVIOUS_HASH])


def test_private_words_are_nobody_elses() -> None:
    words = PrivateWords(2)
    words.view[1] = 5
    words.grow(4)

    assert [0, 5, 0, 0] == words.view.tolist()
    assert private_slot()[Slot.LOG_END] == private_slot()[Slot.LOG_END] == 0
    words.close()


def test_a_read_only_handle_needs_no_words() -> None:
    tail = Tail(MemoryStorage().read_only_view(), ManualClock())

    assert not tail.usable
    assert 0 == tail.slot(3)[Slot.LOG_END]


class Stores(PrivateWords):
    """Words that note what is stored in them, and in what order; whole words only."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.noted: list[tuple[int, int]] = []
        self.view = self  # type: ignore[assignment]

    def __setitem__(self, word: int, value: int) -> None:
        self.noted.append((word - HEADER_WORDS, value))

    def __getitem__(self, word: int) -> int:
        return 0


def test_an_append_stores_each_word_once_and_the_log_end_behind_the_position() -> None:
    stores = Stores(HEADER_WORDS + SLOT_WORDS)
    slot = Slot(stores, 0)
    before = SlotWords(*([0] * 16))
    slot.appended(before, 4096, ((1 << 64) - 2, 17), 10, 5)
    words = [word for word, _ in stores.noted]
    assert sorted(set(words)) == sorted(words), "a follower never meets a word in between"
    assert dict(stores.noted) == {
        Slot.END_POSITION: 4096,
        Slot.PREVIOUS_HASH: -2,
        Slot.MAX_TIMESTAMP: 17,
        Slot.ZERO_FILLED: 4096,
        Slot.LOG_END: 10,
        Slot.SEQUENCE: 5,
    }
    assert words[-2:] == [Slot.LOG_END, Slot.SEQUENCE]
