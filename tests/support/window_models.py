"""What windows do, said by brute force; see operator_models.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from operator_models import Model, Row, Value, key_bytes, summed

DAY = 86_400_000


@dataclass
class FixedModel(Model):
    """Tumbling and hopping windows. `every`: (kind, number) of results before the final one."""

    size: int
    slide: int
    grace: int
    every: tuple[str, int] | None
    windows: dict[tuple[int, Any], list[Value]] = field(default_factory=dict)
    unsaid: dict[tuple[int, Any], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        corrections = self.every is not None and self.every[0] == "corrections"
        self.delay = self.grace + (self.every[1] if self.every and corrections else 0)

    def say(self, end: int, key: Any, status: str) -> Row:
        self.unsaid[end, key] = 0
        shown = status if self.every else ""
        return Row(end - 1, key, summed(key, self.windows[end, key], end, shown))

    def ends(self, time: int) -> list[int]:
        """The ends of the windows a time lies in, rising."""
        last = time - time % self.slide + self.size
        return list(reversed(range(last, time, -self.slide)))

    def places(self) -> list[tuple[int, Any]]:
        return sorted(self.windows, key=lambda place: (place[0], key_bytes(place[1])))

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out: list[Row] = []
        self.late = []
        kind, number = self.every or ("", 0)
        for row in inputs[0]:
            ends = self.ends(row.time)
            alive = [end for end in ends if end + self.delay > before]
            if ends and not alive:
                self.late.append(row)
            for end in alive:
                place = end, row.key
                self.windows.setdefault(place, []).append(row.value)
                self.unsaid[place] = self.unsaid.get(place, 0) + 1
                said = kind == "corrections" and end + self.grace <= before
                if said or (kind == "rows" and self.unsaid[place] >= number):
                    out.append(self.say(*place, "update"))
        places = self.places()
        first = [place for place in places if before < place[0] + self.grace <= after]
        if kind == "corrections":
            out += [self.say(*place, "update") for place in first]
        if kind == "ms" and before // number != after // number:
            out += [self.say(*place, "update") for place in places if self.unsaid[place]]
        for place in places:
            if place[0] + self.delay <= after:
                out.append(self.say(*place, "final"))
                del self.windows[place], self.unsaid[place]
        return out

    def required(self) -> int | None:
        return max((end + self.delay for end, _ in self.windows), default=None)


@dataclass
class DailyModel(FixedModel):
    """Days of a time zone; by how many minutes they are longer than others shows in the results."""

    zone: str = "UTC"
    offset: int = 0

    def ends(self, time: int) -> list[int]:
        return [min(edge for edge in day_edges(self.zone, self.offset, time) if edge > time)]

    def say(self, end: int, key: Any, status: str) -> Row:
        row = super().say(end, key, status)
        start = max(edge for edge in day_edges(self.zone, self.offset, end - 1) if edge < end)
        return row._replace(value=row.value | {"x": row.value["x"] + (end - start - DAY) // 60_000})


def day_edges(zone: str, offset: int, time: int) -> set[int]:
    """Where days begin around a time, found by looking at a clock on the wall there.

    A day begins when that clock first shows so much after midnight. If it is put forward past that,
    the time since it last showed less counts.
    """
    return _edges(zone, offset, time // DAY)


@cache
def _edges(zone: str, offset: int, day: int) -> set[int]:
    rules, edges = ZoneInfo(zone), set[int]()
    instant, shown, greatest = 0, 0, None
    for number in range(7 * 96):
        before = instant, shown
        instant = (day - 3) * DAY + number * DAY // 96
        moment = datetime.fromtimestamp(instant // 1000, rules).replace(tzinfo=UTC)
        shown = int(moment.timestamp()) * 1000 - offset
        if greatest is not None:
            passed = range(-(-(greatest + 1) // DAY) * DAY, shown + 1, DAY)
            edges |= {before[0] + each - before[1] for each in passed}
        greatest = shown if greatest is None else max(greatest, shown)
    return edges


@dataclass
class Session:
    """The rows of one session, in the order in which they were put together."""

    key: Any
    rows: list[Row]
    unsaid: int = 0
    said: bool = False

    @property
    def first(self) -> int:
        return min(row.time for row in self.rows)

    @property
    def last(self) -> int:
        return max(row.time for row in self.rows)


@dataclass
class SessionModel(Model):
    """Windows of activity. `every`: rows after which a session says what it has, None: never."""

    gap: int
    grace: int
    every: int | None
    sessions: list[Session] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.delay = self.grace

    def say(self, one: Session, status: str) -> Row:
        end = one.last + self.gap
        shown = status if self.every else ""
        return Row(end - 1, one.key, summed(one.key, [row.value for row in one.rows], end, shown))

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out: list[Row] = []
        self.late = []
        for row in inputs[0]:
            if not self.take(row, before, out):
                self.late.append(row)
        due = [one for one in self.sessions if one.last + self.gap + self.grace <= after]
        self.sessions = [one for one in self.sessions if one not in due]
        due.sort(key=lambda one: (one.last, one.first, key_bytes(one.key)))
        return out + [self.say(one, "final") for one in due]

    def take(self, row: Row, level: int, out: list[Row]) -> bool:
        near = [
            one
            for one in self.sessions
            if one.key == row.key and any(abs(row.time - each.time) < self.gap for each in one.rows)
        ]
        near.sort(key=lambda one: one.first)
        last = max([row.time, *(one.last for one in near)])
        if last + self.gap + self.grace <= level:
            return False
        made = Session(row.key, [*(each for one in near for each in one.rows), row])
        made.unsaid = 1 + sum(one.unsaid for one in near)
        if near and len(near) == 1 and made.first == near[0].first:
            made.said = near[0].said
        elif self.every and any(one.said for one in near):
            out += [self.say(one, "retracted") for one in near if one.said]
            made.unsaid = max(made.unsaid, self.every)
        self.sessions = [one for one in self.sessions if one not in near] + [made]
        if self.every and made.unsaid >= self.every:
            made.unsaid, made.said = 0, True
            out.append(self.say(made, "update"))
        return True

    def required(self) -> int | None:
        ends = [one.last + self.gap + self.grace for one in self.sessions]
        return max(ends, default=None)


@dataclass
class CountModel(Model):
    """Windows of so many rows."""

    size: int
    held: dict[Any, list[Row]] = field(default_factory=dict)

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out = []
        for row in inputs[0]:
            window = self.held.setdefault(row.key, [])
            window.append(row)
            if len(window) == self.size:
                del self.held[row.key]
                last = max(each.time for each in window)
                value = summed(row.key, [each.value for each in window], last + 1)
                out.append(Row(last, row.key, value))
        return out
