"""A queue with workers in several processes on one simulated machine, and what must hold of it.

The world takes random steps: workers get jobs, ack, nack, reject, extend, stall, close; processes
begin and are killed; the machine loses power, between the steps or inside one. It knows for each
record whether it is done, who holds it, until when at least, and how often it was handed out.
Whatever happens: nothing done comes again, nothing held is given to another, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from simulated_stores import START_MS, abandon, kill, open_quietly

from millstream import FencedError, Job, Queue, Store
from millstream.simulated_disk import Keep
from millstream.testing import FaultPlan, ManualClock, MemoryStorage

VISIBILITY_MS = 1_000
DELAY_MS = 2_000
MOST = 4
PARTITIONS = 2
TIMES_MS = (1, 40, 60, 210, 400, 790, 1_000, 3_000)

Place = tuple[int, int]
"""Partition and offset."""


@dataclass
class Held:
    """One delivery of a job."""

    job: Job
    worker: int
    until_ms: int
    """Its lease lasts at least so long, unless the worker ends."""


@dataclass
class Process:
    """An open store and its workers, by number."""

    store: Store
    workers: dict[int, Queue] = field(default_factory=dict)


class World:
    """See the module."""

    def __init__(self, seed: int, storage: MemoryStorage | None = None) -> None:
        self.random = Random(seed)
        self.clock = ManualClock(START_MS)
        self.storage = storage or MemoryStorage()
        self.begun_at = 0
        """Number of the operation after `begin`, if somebody has noted it."""
        self.processes: list[Process] = []
        self.numbers = 0
        self.holes = 0
        """Offsets that were appended to and hold no record."""
        self.appended: set[Place] = set()
        self.done: set[Place] = set()
        self.dead: set[Place] = set()
        self.unsure: set[Place] = set()
        """The power went while they were settled: they are, or are not."""
        self.settling: Sequence[Place] = ()
        self.held: dict[Place, Held] = {}
        self.delayed: dict[Place, int] = {}
        self.handed_out: dict[Place, int] = {}
        """Since the power went; deliveries are at least so many."""
        self.ever_handed_out: dict[Place, int] = {}
        self.stale: list[Held] = []
        """Deliveries of jobs that were handed out again since."""

    def begin(self) -> None:
        """Create the topics, and begin."""
        with open_quietly(self.storage, self.clock) as store:
            store.create_topic("jobs", partitions=PARTITIONS)
            store.create_topic("dead")
        self.begin_process()

    def now_ms(self) -> int:
        return int(self.clock.monotonic() * 1000)

    # --- steps -------------------------------------------------------------------------------

    def step(self) -> None:
        """Something happens."""
        steps: list[tuple[int, Callable[[], None]]] = [
            (6, self.append),
            (1, self.abort),
            (14, self.get),
            (5, self.get_many),
            (16, self.settle),
            (5, self.settle_many),
            (4, self.settle_late),
            (3, self.extend),
            (10, self.pass_time),
            (2, self.begin_process),
            (3, self.open_worker),
            (2, self.close_worker),
            (2, self.kill_process),
        ]
        if not any(each.workers for each in self.processes):
            self.open_worker()
        self.random.choices([each for _, each in steps], [weight for weight, _ in steps])[0]()

    def pass_time(self) -> None:
        self.clock.advance(self.random.choice(TIMES_MS))

    def begin_process(self) -> None:
        if len(self.processes) < 3:
            self.processes.append(Process(open_quietly(self.storage, self.clock)))
            self.open_worker()

    def open_worker(self) -> None:
        process = self.random.choice(self.processes)
        if len(process.workers) < 2:
            self.numbers += 1
            process.workers[self.numbers] = process.store.queue(
                "jobs", visibility=VISIBILITY_MS, max_deliveries=MOST, dead_letter="dead"
            )

    def close_worker(self) -> None:
        process, number = self.any_worker()
        if process is not None:
            self.forget_worker(number)
            process.workers.pop(number).close()

    def kill_process(self) -> None:
        if len(self.processes) > 1:
            process = self.processes.pop(self.random.randrange(len(self.processes)))
            kill(process.store)
            for number in process.workers:
                self.forget_worker(number)

    def any_worker(self) -> tuple[Process | None, int]:
        workers = [(each, number) for each in self.processes for number in each.workers]
        return self.random.choice(workers) if workers else (None, 0)

    def forget_worker(self, number: int) -> None:
        """Its leases are over."""
        self.stale = [held for held in self.stale if held.worker != number]
        self.held = {place: held for place, held in self.held.items() if held.worker != number}

    def append(self) -> None:
        store = self.random.choice(self.processes).store
        count = self.random.choice((1, 2, 20))
        partition = self.random.randrange(PARTITIONS)
        (written,) = store.append_many("jobs", [b"x"] * count, partition=partition)
        base = written.base_offset
        self.appended |= {(partition, offset) for offset in range(base, base + count)}

    def abort(self) -> None:
        """Leave offsets without records."""
        store = self.random.choice(self.processes).store
        self.holes += 5
        with store.transaction() as transaction:
            transaction.append_many("jobs", [b"never"] * 5, partition=0)
            transaction.abort()

    # --- work --------------------------------------------------------------------------------

    def get(self) -> None:
        process, number = self.any_worker()
        for _ in range(self.random.choice((1, 1, 6)) if process else 0):
            assert process is not None
            job = process.workers[number].get(timeout=0)
            if job is not None:
                self.take(number, job)

    def get_many(self) -> None:
        process, number = self.any_worker()
        if process is not None:
            count = self.random.choice((2, 15))
            jobs = process.workers[number].get_many(count, timeout=0)
            assert len(jobs) <= count
            for job in jobs:
                self.take(number, job)

    def take(self, number: int, job: Job) -> None:
        """A job was handed out."""
        place = (job.partition, job.offset)
        now = self.now_ms()
        assert b"x" == job.value
        assert place not in self.done, "it was done"
        assert place not in self.dead, "it is a dead letter"
        before = self.held.get(place)
        assert before is None or before.until_ms <= now, "somebody else holds it"
        assert self.delayed.pop(place, 0) <= self.clock.now_ms(), "it was delayed"
        self.handed_out[place] = self.handed_out.get(place, 0) + 1
        self.ever_handed_out[place] = self.ever_handed_out.get(place, 0) + 1
        # What was fetched ahead by a worker that died, or stalled, counts once more.
        most = min(MOST, self.ever_handed_out[place] + 1)
        assert self.handed_out[place] <= job.deliveries <= most
        if before is not None:
            self.stale.append(before)
        self.held[place] = Held(job, number, now + VISIBILITY_MS)

    def settle(self) -> None:
        """Whoever got the job last settles it: in time always, later unless it is taken back."""
        if not self.held:
            return
        place = self.random.choice(sorted(self.held))
        held = self.held.pop(place)
        job, exhausted = held.job, held.job.deliveries >= MOST
        how = self.random.choice(("ack", "ack", "ack", "nack", "delay", "reject", "transaction"))
        self.settling = [place]
        try:
            if how == "transaction":
                with self.store_of(held).transaction() as transaction:
                    transaction.ack(job)
            else:
                {
                    "ack": job.ack,
                    "nack": job.nack,
                    "delay": lambda: job.nack(delay=DELAY_MS),
                    "reject": job.reject,
                }[how]()
        except FencedError:
            assert held.until_ms <= self.now_ms(), "the lease was held"
        else:
            if how in {"ack", "transaction"}:
                self.done.add(place)
            elif how == "reject" or exhausted:
                self.dead.add(place)
            elif how == "delay":
                self.delayed[place] = self.clock.now_ms() + DELAY_MS
        self.settling = ()

    def settle_many(self) -> None:
        process, number = self.any_worker()
        mine = [(place, held) for place, held in self.held.items() if held.worker == number]
        if process is None or not mine:
            return
        mine = self.random.sample(mine, self.random.randint(1, len(mine)))
        self.settling = [place for place, _ in mine]
        try:
            process.workers[number].ack(*(held.job for _, held in mine))
        except FencedError:
            assert any(held.until_ms <= self.now_ms() for _, held in mine)
        for place, held in mine:
            del self.held[place]
            if held.job.state == "acked":
                self.done.add(place)
            else:
                assert "lost" == held.job.state
                assert held.until_ms <= self.now_ms()
        self.settling = ()

    def settle_late(self) -> None:
        """Somebody else, or the same worker again, has got the job since."""
        if not self.stale:
            return
        held = self.stale.pop(self.random.randrange(len(self.stale)))
        how = self.random.choice((held.job.ack, held.job.nack, held.job.extend, held.job.reject))
        try:
            how()
        except FencedError:
            return
        raise AssertionError("it was settled by two")

    def extend(self) -> None:
        if not self.held:
            return
        place = self.random.choice(sorted(self.held))
        held = self.held[place]
        try:
            held.job.extend()
        except FencedError:
            assert held.until_ms <= self.now_ms(), "the lease was held"
            del self.held[place]
        else:
            held.until_ms = self.now_ms() + VISIBILITY_MS

    def store_of(self, held: Held) -> Store:
        """The store of the process that holds a job."""
        return next(each.store for each in self.processes if held.worker in each.workers)

    # --- the power goes ----------------------------------------------------------------------

    def lose_power(self, seed: int, keep: Keep, faults: FaultPlan | None = None) -> None:
        """Begin anew with what is left; call it also after a crash inside a step."""
        after = self.storage.crash(seed, keep, faults=faults)
        for process in self.processes:
            abandon(process.store)
        self.storage, self.processes = after, []
        self.held, self.stale, self.handed_out = {}, [], {}
        # A nack may have got through, with its delay, or not.
        self.delayed = {}
        self.unsure |= set(self.settling)
        self.settling = ()
        with open_quietly(self.storage, self.clock) as store:
            # What was being appended, if it got through.
            self.appended |= {(record.partition, record.offset) for record in store.read("jobs")}
        self.begin_process()

    # --- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """The numbers of the queue agree."""
        for store in [each.store for each in self.processes][:1]:
            settled = self.done | self.letters(store)
            for info in store.queues("jobs"):
                for each in info.partitions:
                    left = sum(place[0] == each.partition for place in self.appended - settled)
                    # Offsets without records count until somebody has passed them.
                    assert left - len(self.unsure) <= each.depth <= left + self.holes

    def letters(self, store: Store) -> set[Place]:
        """The places of the dead letters."""
        found = []
        for record in store.read("dead"):
            headers = dict(record.headers)
            partition, offset = headers["dead-letter-partition"], headers["dead-letter-offset"]
            found.append((int(partition or b""), int(offset or b"")))
        assert len(set(found)) == len(found), "a dead letter is there twice"
        return set(found)

    def abandon(self) -> None:
        """Nobody wants to know how it ends."""
        for process in self.processes:
            kill(process.store)
        self.processes = []

    def end(self) -> None:
        """All processes die, and one comes and finishes: then everything is done, once."""
        self.abandon()
        self.clock.advance(DELAY_MS)
        with open_quietly(self.storage, self.clock) as store:
            left = set()
            with store.queue(
                "jobs", max_deliveries=MOST, dead_letter="dead", follow=False
            ) as queue:
                for job in queue:
                    place = (job.partition, job.offset)
                    assert place not in left, "it was acked"
                    left.add(place)
                    job.ack()
            letters = self.letters(store)
            assert self.dead <= letters
            assert not self.done & (left | letters)
            assert not letters & left
            assert self.appended - self.unsure <= self.done | letters | left
            assert self.done | letters | left <= self.appended
            assert [0] * PARTITIONS == [each.lag for each in store.group_lag("workers")]
