"""Shorthand for tests of queues."""

from __future__ import annotations

from millstream import Job, Queue, Store


def put(store: Store, count: int, topic: str = "jobs") -> None:
    """Append jobs whose values are numbers, counting on from what is there."""
    end = sum(each.end for each in store.offsets(topic).values())
    store.append_many(topic, [b"%d" % (end + number) for number in range(count)])


def got(job: Job | None) -> Job:
    """A job that is there."""
    assert job is not None
    return job


def value(job: Job | None) -> bytes | None:
    """The value of a job that is there."""
    return got(job).value


def nothing(queue: Queue) -> bool:
    """Whether there is no job to be had."""
    return queue.get(timeout=0) is None


def floor(store: Store, group: str = "workers") -> list[int | None]:
    """What the group of a queue has committed, per partition."""
    return [each.committed for each in store.group_lag(group)]
