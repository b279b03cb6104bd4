"""Events of an online auction, after the Nexmark benchmark: persons, auctions and bids.

Event `k` is a pure function of the seed and of `k`, so any part of the stream can be made anew, by
anybody. Of 50 events one is a person, three are auctions and 46 are bids. An auction comes after
the person who sells, a bid after its auction and its bidder. Half of the bids are on a hot auction,
three of four come from a hot bidder and three of four auctions are those of a hot seller: one of
the last hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec
import xxhash

CYCLE: Final = 50
AUCTIONS_PER_CYCLE: Final = 3
FIRST_ID: Final = 1000
START_MS: Final = 1_704_067_200_000  # 2024-01-01
HOT_SPAN: Final = 100
ACTIVE: Final = 100
"""Persons and auctions that are not hot are taken from the last so many."""
MAX_OPEN_MS: Final = 20_000
CHANNELS: Final = ("Google", "Facebook", "Baidu", "Apple")
STATES: Final = (
    ("Phoenix", "AZ"),
    ("Los Angeles", "CA"),
    ("San Francisco", "CA"),
    ("Boise", "ID"),
    ("Portland", "OR"),
    ("Bend", "OR"),
    ("Redmond", "WA"),
    ("Cheyenne", "WY"),
)
FIRST_NAMES: Final = ("Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah")
LAST_NAMES: Final = ("Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones")


class Person(msgspec.Struct, frozen=True):
    """Somebody who may sell and bid."""

    id: int
    name: str
    email: str
    city: str
    state: str
    ts: int


class Auction(msgspec.Struct, frozen=True):
    """Something for sale until `expires`."""

    id: int
    item: str
    initial: int
    reserve: int
    ts: int
    expires: int
    seller: int
    category: int


class Bid(msgspec.Struct, frozen=True):
    """An offer, in cents."""

    auction: int
    bidder: int
    price: int
    channel: str
    url: str
    extra: str
    ts: int


Event: TypeAlias = Person | Auction | Bid


class _Chance:
    """Numbers drawn from the seed and the number of the event."""

    def __init__(self, seed: int, k: int) -> None:
        self._rest = xxhash.xxh3_128_intdigest(k.to_bytes(8, "little"), seed)

    def below(self, bound: int) -> int:
        self._rest, drawn = divmod(self._rest, bound)
        return drawn


def event(seed: int, k: int, *, interval_ms: int = 1) -> Event:
    """Event number `k`, counted from 0; events are `interval_ms` of event time apart."""
    cycle, place = divmod(k, CYCLE)
    chance = _Chance(seed, k)
    ts = START_MS + k * interval_ms
    if place == 0:
        return _person(chance, cycle, ts)
    if place <= AUCTIONS_PER_CYCLE:
        return _auction(chance, cycle, place, ts)
    last_auction = (cycle + 1) * AUCTIONS_PER_CYCLE - 1
    auction = _one_of(chance, last_auction, hot=2)
    bidder = _one_of(chance, cycle, hot=4)
    channel = chance.below(2 * len(CHANNELS))
    named = channel < len(CHANNELS)
    number = chance.below(10_000)
    path = f"item{chance.below(10)}/shop{chance.below(10)}/page{chance.below(10)}"
    query = "" if named else f"?query=1&channel_id={number}"
    return Bid(
        auction=FIRST_ID + auction,
        bidder=FIRST_ID + bidder,
        price=_price(chance),
        channel=CHANNELS[channel] if named else f"channel-{number}",
        url=f"https://www.nexmark.com/{path}/item.htm{query}",
        extra="".join("abcdefgh"[chance.below(8)] for _ in range(8)),
        ts=ts,
    )


def events(seed: int, stop: int, start: int = 0, *, interval_ms: int = 1) -> Iterator[Event]:
    """Events `start` to `stop`, without `stop`."""
    return (event(seed, k, interval_ms=interval_ms) for k in range(start, stop))


def topic_of(one: Event) -> str:
    """The topic an event belongs to."""
    return type(one).__name__.lower()


def _person(chance: _Chance, cycle: int, ts: int) -> Person:
    first = FIRST_NAMES[chance.below(len(FIRST_NAMES))]
    last = LAST_NAMES[chance.below(len(LAST_NAMES))]
    city, state = STATES[chance.below(len(STATES))]
    email = f"{first}.{last}@example.com".lower()
    return Person(FIRST_ID + cycle, f"{first} {last}", email, city, state, ts)


def _auction(chance: _Chance, cycle: int, place: int, ts: int) -> Auction:
    initial = _price(chance)
    return Auction(
        id=FIRST_ID + cycle * AUCTIONS_PER_CYCLE + place - 1,
        item=f"item {chance.below(1000)}",
        initial=initial,
        reserve=initial + _price(chance),
        ts=ts,
        expires=ts + 1 + chance.below(MAX_OPEN_MS),
        seller=FIRST_ID + _one_of(chance, cycle, hot=4),
        category=10 + chance.below(5),
    )


def _one_of(chance: _Chance, last: int, *, hot: int) -> int:
    """A number from 0 to `last`: the hot one but for one time in `hot`, else one of the newest."""
    if chance.below(hot):
        return last // HOT_SPAN * HOT_SPAN
    return last - chance.below(min(last + 1, ACTIVE))


def _price(chance: _Chance) -> int:
    """Most are low: as many have three digits as have six."""
    return 100 + chance.below(10 ** (1 + chance.below(7)))
