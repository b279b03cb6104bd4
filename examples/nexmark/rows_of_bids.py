"""The queries of Nexmark that look at one bid at a time: what passes, and what is made of it."""

from __future__ import annotations

import re
from typing import Any

from generator import Bid

from millstream.processor import Pipeline, SourceStream, col, to_jsonl, when


def _bids(pipeline: Pipeline) -> SourceStream[Bid]:
    return pipeline.source("bid", type=Bid, time="ts")


def q0() -> Pipeline:
    """All bids as they are: what reading, decoding, encoding and writing cost."""
    pipeline = Pipeline("q0")
    _bids(pipeline).to("q0")
    return pipeline


def q1() -> Pipeline:
    """All bids, their price in another currency."""
    pipeline = Pipeline("q1")
    price = 0.908 * col("price")
    _bids(pipeline).select("auction", "bidder", price=price, ts=col("ts")).to("q1")
    return pipeline


def q2() -> Pipeline:
    """Price of the bids on every 123rd auction."""
    pipeline = Pipeline("q2")
    some = _bids(pipeline).filter(col("auction") % 123 == 0)
    some.select("auction", "price").to("q2")
    return pipeline


def q10(directory: str | None = None) -> Pipeline:
    """All bids with the hour and minute they were made in; also as files in folders by these."""
    pipeline = Pipeline("q10")
    ts = col("ts")
    dated = _bids(pipeline).with_columns(date=ts.date(), hour=ts.hour(), minute=ts.minute())
    dated.to("q10")
    if directory is not None:
        dated.to(to_jsonl(directory, folders=["date", "hour", "minute"], name="bids"))
    return pipeline


def q13() -> Pipeline:
    """Bids with what a table beside them, the topic `side`, says of their auction."""
    pipeline = Pipeline("q13")
    side = pipeline.table("side", type=str, key_type=int)
    pairs = _bids(pipeline).key_by(col("auction") % 10_000).join_table(side)
    bid = {name: col("left").field(name) for name in ("auction", "bidder", "ts")}
    pairs.select(**bid, value=col("right")).to("q13")
    return pipeline


def q14() -> Pipeline:
    """Bids of some height: the price converted, the part of the day, and how many c in `extra`."""
    pipeline = Pipeline("q14")
    hour, extra = col("ts").hour(), col("extra")
    price = 0.908 * col("price")
    part = (
        when((hour >= 8) & (hour <= 18))
        .then("day")
        .when((hour <= 6) | (hour >= 20))
        .then("night")
        .otherwise("other")
    )
    dear = _bids(pipeline).filter((price > 1_000_000) & (price < 50_000_000))
    c = extra.length() - extra.replace("c", "").length()
    dear.select("auction", price=price, part=part, ts=col("ts"), c=c).to("q14")
    return pipeline


_KNOWN = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
_CHANNEL_ID = re.compile(r"[?&]channel_id=([^&]*)")


def q21() -> Pipeline:
    """Bids with the number of their channel, which is known or else in the address."""
    pipeline = Pipeline("q21")

    def numbered(bid: Bid) -> list[dict[str, Any]]:
        number = _KNOWN.get(bid.channel.lower())
        if number is None and (found := _CHANNEL_ID.search(bid.url)):
            number = found[1]
        if number is None:
            return []
        return [{"auction": bid.auction, "ts": bid.ts, "channel_id": number}]

    _bids(pipeline).flat_map(numbered).to("q21")
    return pipeline


def q22() -> Pipeline:
    """Bids with the three directories of their address."""
    pipeline = Pipeline("q22")

    def split(bid: Bid) -> dict[str, Any]:
        _, _, _, first, second, third, *_ = bid.url.split("/")
        return {"auction": bid.auction, "ts": bid.ts, "dirs": [first, second, third]}

    _bids(pipeline).map(split).to("q22")
    return pipeline
