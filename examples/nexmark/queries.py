"""The queries of Nexmark as pipelines, one function each; each writes the topic of its name.

Those without windows or joins are in `rows_of_bids.py`. Where a query keeps one newest row for
each key, every change of it is written under that key, as a table is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from generator import MAX_OPEN_MS, Auction, Bid, Person

from millstream.processor import (
    Context,
    Joined,
    KeyedStream,
    Pipeline,
    Timer,
    Windowed,
    agg,
    col,
    hopping,
    session,
    tumbling,
    when,
)

CATEGORY = 10
LAST = 10


def q3() -> Pipeline:
    """Who in Oregon, Idaho and California sells in category 10? Auctions meet persons as known."""
    pipeline = Pipeline("q3")
    persons = pipeline.table("person", type=Person, key="id", key_type=int)
    auctions = pipeline.source("auction", type=Auction, time="ts").filter(
        col("category") == CATEGORY
    )
    local = persons.filter(col("state").is_in(["OR", "ID", "CA"]))

    pairs = auctions.key_by("seller").join_table(local)
    person = {name: col("right").field(name) for name in ("name", "city", "state")}
    pairs.select(**person, id=col("left").field("id")).to("q3")
    return pipeline


def _bids_in_time(pipeline: Pipeline) -> KeyedStream[int, Joined[Auction, Bid]]:
    """Auctions with each of their bids before they expired."""
    auctions = pipeline.source("auction", type=Auction, time="ts")
    bids = pipeline.source("bid", type=Bid, time="ts")
    pairs = auctions.key_by("id").join(bids.key_by("auction"), lower=0, upper=MAX_OPEN_MS)

    def in_time(pair: Joined[Auction, Bid]) -> bool:
        return pair.right.ts <= pair.left.expires

    return pairs.filter(in_time)


def q4() -> Pipeline:
    """What is the mean winning price of each category, of the auctions so far?"""
    pipeline = Pipeline("q4")

    def offer(pair: Joined[Auction, Bid]) -> dict[str, int]:
        return {"category": pair.left.category, "price": pair.right.price}

    winning = (
        _bids_in_time(pipeline)
        .map(offer)
        .agg(category=agg.last("category"), price=agg.max("price"), name="winning")
    )
    winning.group_by("category", name="means").agg(price=agg.mean("price")).to("q4")
    return pipeline


def _none() -> list[list[int]]:
    return []


def _most(best: list[list[int]], offer: list[int]) -> list[list[int]]:
    """The offers whose first number is the greatest, all of them where several are equal."""
    if not best or offer[0] > best[0][0]:
        return [offer]
    return [*best, offer] if offer[0] == best[0][0] else best


def q5() -> Pipeline:
    """Which auctions got the most bids in the last ten seconds? Said every two seconds."""
    pipeline = Pipeline("q5")
    bids = pipeline.source("bid", type=Bid, time="ts")
    counts = bids.key_by("auction").window(hopping("10s", "2s"), name="counts").agg(n=agg.count())

    def ends(window: Windowed[int, int]) -> int:
        return window.end

    def hottest(best: list[list[int]], window: Windowed[int, int]) -> list[list[int]]:
        return _most(best, [window["n"], window.key])

    def hot(window: Windowed[int, Any]) -> list[dict[str, int]]:
        return [
            {"auction": auction, "num": n, "window_end": window.key}
            for n, auction in window["best"]
        ]

    # Windows that end together are the only ones within two seconds.
    most = (
        counts.key_by(ends).window(tumbling("2s"), name="most").agg(best=agg.fold(_none, hottest))
    )
    most.flat_map(hot).to("q5")
    return pipeline


class Offers(msgspec.Struct):
    """What q6 keeps of an auction that is open."""

    seller: int = 0
    expires: int = 0
    best: int = 0


class Sale(msgspec.Struct):
    """What an auction has come to."""

    seller: int
    price: int


def _offered(context: Context[int, Offers], event: Auction | Bid) -> None:
    """An auction opens, or gets a bid."""
    offers = context.state
    if isinstance(event, Auction):
        offers.seller, offers.expires = event.seller, event.expires
        context.set_timer(event.expires + 1)
    elif event.ts <= offers.expires:
        offers.best = max(offers.best, event.price)
    elif not offers.expires:
        context.clear()  # its auction has closed


def _closed(context: Context[int, Offers], timer: Timer) -> list[Sale]:
    """An auction has closed, with a winner or without bids."""
    del timer
    offers = context.state
    context.clear()
    return [Sale(offers.seller, offers.best)] if offers.best else []


def _last_ten(prices: list[int], sale: Sale) -> list[int]:
    return [*prices, sale.price][-LAST:]


def q6() -> Pipeline:
    """What is the mean price of the last ten auctions that each seller has closed?"""
    pipeline = Pipeline("q6")
    auctions = pipeline.source("auction", type=Auction, time="ts").key_by("id")
    bids = pipeline.source("bid", type=Bid, time="ts").key_by("auction")
    sales = auctions.merge(bids).process(_offered, state=Offers, on_timer=_closed)

    def mean(prices: list[int]) -> dict[str, float]:
        return {"price": sum(prices) / len(prices)}

    by_seller = sales.key_by("seller").fold(list, _last_ten, name="last")
    by_seller.map(mean).to("q6")
    return pipeline


def q7() -> Pipeline:
    """Which bids were the highest of their ten seconds?"""
    pipeline = Pipeline("q7")
    bids = pipeline.source("bid", type=Bid, time="ts")

    def everybody(bid: Bid) -> int:
        del bid
        return 0

    def best_of(best: list[list[int]], bid: Bid) -> list[list[int]]:
        return _most(best, [bid.price, bid.auction, bid.bidder, bid.ts])

    def highest(window: Windowed[int, Any]) -> list[dict[str, int]]:
        names = ("price", "auction", "bidder", "ts")
        return [dict(zip(names, best, strict=True)) for best in window["best"]]

    tops = bids.key_by(everybody).window(tumbling("10s")).agg(best=agg.fold(_none, best_of))
    tops.flat_map(highest).to("q7")
    return pipeline


def q8() -> Pipeline:
    """Who put something up for sale within the ten seconds of becoming a person here?"""
    pipeline = Pipeline("q8")
    persons = pipeline.source("person", type=Person, time="ts").key_by("id")
    auctions = pipeline.source("auction", type=Auction, time="ts").key_by("seller")
    new = persons.window(tumbling("10s"), name="new").agg(name=agg.last("name"))
    selling = auctions.window(tumbling("10s"), name="selling").agg(n=agg.count())

    def found(person: Windowed[int, Any], seller: Windowed[int, Any]) -> dict[str, object]:
        del seller
        return {"id": person.key, "name": person["name"], "window_start": person.start}

    new.join(selling, within=0, into=found, name="both").to("q8")  # windows that end together
    return pipeline


def q9() -> Pipeline:
    """What is the winning bid of each auction so far? Of equal ones the first."""
    pipeline = Pipeline("q9")

    def better(one: Joined[Auction, Bid], other: Joined[Auction, Bid]) -> Joined[Auction, Bid]:
        left, right = one.right, other.right
        return other if (-right.price, right.ts) < (-left.price, left.ts) else one

    def told(pair: Joined[Auction, Bid]) -> dict[str, int]:
        bid = pair.right
        return {"id": pair.left.id, "bidder": bid.bidder, "price": bid.price, "ts": bid.ts}

    _bids_in_time(pipeline).reduce(better, name="best").map(told).to("q9")
    return pipeline


def q11() -> Pipeline:
    """How many bids did each bidder make in a session, until ten seconds of silence?"""
    pipeline = Pipeline("q11")
    bids = pipeline.source("bid", type=Bid, time="ts")
    bids.key_by("bidder").window(session("10s")).agg(n=agg.count()).to("q11")
    return pipeline


def q12() -> Pipeline:
    """How many bids did each bidder make per ten seconds, by when they were appended?"""
    pipeline = Pipeline("q12")
    bids = pipeline.source("bid", type=Bid)  # no time=: that of the record
    bids.key_by("bidder").window(tumbling("10s")).agg(n=agg.count()).to("q12")
    return pipeline


def _ranks(of: str = "") -> dict[str, Any]:
    """How many there are below ten thousand, below a million, and above; of rows or of a field."""
    price = col("price")
    ranks = {
        "rank1": price < 10_000,
        "rank2": (price >= 10_000) & (price < 1_000_000),
        "rank3": price >= 1_000_000,
    }
    if not of:
        return {name: agg.sum(when(there).then(1).otherwise(0)) for name, there in ranks.items()}
    return {
        f"{of}s_{name}": agg.distinct(when(there).then(col(of)).otherwise(None))
        for name, there in ranks.items()
    }


def _of_a_day(pipeline: Pipeline, *fields: str) -> KeyedStream[Any, Bid]:
    """Bids by the number of their day, with fields behind it in a text."""
    bids = pipeline.source("bid", type=Bid, time="ts")
    key = col("ts") // 86_400_000
    for field in fields:
        key = key.cast("str") + " " + col(field).cast("str")
    return bids.key_by(key)


def q15() -> Pipeline:
    """How many bids, bidders and auctions has each day, by how high the bids are?"""
    pipeline = Pipeline("q15")
    _of_a_day(pipeline).agg(
        n=agg.count(),
        **_ranks(),
        bidders=agg.distinct("bidder"),
        **_ranks("bidder"),
        auctions=agg.distinct("auction"),
        **_ranks("auction"),
    ).to("q15")
    return pipeline


def q16() -> Pipeline:
    """The same as q15 for each channel."""
    pipeline = Pipeline("q16")
    _of_a_day(pipeline, "channel").agg(
        n=agg.count(),
        **_ranks(),
        bidders=agg.distinct("bidder"),
        **_ranks("bidder"),
        auctions=agg.distinct("auction"),
        **_ranks("auction"),
    ).to("q16")
    return pipeline


def q17() -> Pipeline:
    """How many bids has each auction a day, how high, and what are least, most, mean and sum?"""
    pipeline = Pipeline("q17")
    _of_a_day(pipeline, "auction").agg(
        n=agg.count(),
        **_ranks(),
        least=agg.min("price"),
        most=agg.max("price"),
        mean=agg.mean("price"),
        total=agg.sum("price"),
    ).to("q17")
    return pipeline


def q18() -> Pipeline:
    """What is the last bid of each bidder on each auction?"""
    pipeline = Pipeline("q18")
    bids = pipeline.source("bid", type=Bid, time="ts")
    pair = col("bidder").cast("str") + " " + col("auction").cast("str")
    fields: dict[str, Any] = {n: agg.last(n, by="ts") for n in Bid.__struct_fields__}
    bids.key_by(pair).agg(**fields).to("q18")
    return pipeline


def q19() -> Pipeline:
    """What are the ten highest prices of each auction?"""
    pipeline = Pipeline("q19")
    bids = pipeline.source("bid", type=Bid, time="ts")
    bids.key_by("auction").agg(best=agg.top_k(10, "price")).to("q19")
    return pipeline


def q20() -> Pipeline:
    """Which bids are on auctions of category 10, and what is it that they are on?"""
    pipeline = Pipeline("q20")
    auctions = pipeline.table("auction", type=Auction, key="id", key_type=int)
    bids = pipeline.source("bid", type=Bid, time="ts")
    chosen = auctions.filter(col("category") == CATEGORY)
    bid = {name: col("left").field(name) for name in ("bidder", "price", "ts")}
    pairs = bids.key_by("auction").join_table(chosen)
    pairs.select(**bid, item=col("right").field("item")).to("q20")
    return pipeline
