from collections.abc import Iterator

import pytest

from millstream.catalog import GroupOffset
from millstream.config import TopicConfig
from millstream.engine import Engine
from millstream.errors import FencedError, LockedError, StoreClosedError, UsageError
from millstream.group_catalog import GroupCatalog
from millstream.membership import LIVENESS_INTERVAL_SECONDS, Membership, remove_dead_members
from millstream.record import TopicPartition
from millstream.testing import ManualClock, MemoryStorage

ORDERS = frozenset({"orders"})
TICK_MS = int(LIVENESS_INTERVAL_SECONDS * 1000) + 1


class Machine:
    """Several open stores on one storage, as several processes would have them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.storage = MemoryStorage()
        self.engines: list[Engine] = []

    def process(self) -> Engine:
        engine = Engine(self.storage, self.clock, durability="os", read_only=False)
        self.engines.append(engine)
        return engine

    def kill(self, engine: Engine) -> None:
        """What the operating system does: the lock is free, nobody says goodbye."""
        lock = engine.liveness._lock
        assert lock is not None
        lock.release()

    def tick(self, *members: Membership) -> list[bool]:
        self.clock.advance(TICK_MS)
        return [member.poll() for member in members]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    machine.process()
    create(machine, "orders", 4)
    yield machine
    for engine in machine.engines:
        engine.close()


def create(machine: Machine, name: str, partitions: int) -> None:
    engine = machine.engines[0]
    engine.catalog.create_topic(name, partitions, TopicConfig(), 0)
    engine.tail.bump("topics_version")


def member(engine: Engine, group: str = "g", topics: frozenset[str] = ORDERS) -> Membership:
    return Membership(engine, group, topics)


def numbers(membership: Membership) -> list[int]:
    return [partition.partition for partition in membership.owned]


def order(number: int) -> TopicPartition:
    return TopicPartition("orders", number)


def test_the_first_member_owns_everything_at_once(machine: Machine) -> None:
    assert numbers(member(machine.process())) == [0, 1, 2, 3]


def test_a_live_owner_keeps_its_partitions_until_it_hands_over(machine: Machine) -> None:
    first = member(machine.process())
    second = member(machine.process())

    assert numbers(second) == []
    assert [second.expecting] == [True]
    first.poll()
    assert numbers(first) == [0, 1, 2, 3]
    first.commit({order(3): 7})

    assert first.hand_over()

    assert second.poll()
    assert numbers(first) == [0, 1]
    assert numbers(second) == [2, 3]
    assert [second.expecting] == [False]
    assert second.owned[order(3)].committed_offset == 7
    assert not first.hand_over()


def test_a_change_is_noticed_at_the_next_poll_without_waiting(machine: Machine) -> None:
    first = member(machine.process())
    assert not first.poll()

    second = member(machine.process())
    first.poll()
    first.hand_over()

    assert second.poll()
    assert not second.poll()


def test_leaving_gives_the_partitions_to_the_others_at_once(machine: Machine) -> None:
    first, second = member(machine.process()), member(machine.process())
    first.poll()
    first.hand_over()

    first.leave()
    first.leave()

    assert second.poll()
    assert numbers(second) == [0, 1, 2, 3]
    assert numbers(first) == []


def test_a_killed_members_partitions_are_taken_over_by_whoever_polls(machine: Machine) -> None:
    victim = machine.process()
    first, second = member(victim), member(machine.process())
    first.commit({order(0): 5})
    lock_path = victim.liveness.path

    machine.kill(victim)
    machine.tick(second)

    assert numbers(second) == [0, 1, 2, 3]
    assert second.owned[order(0)].committed_offset == 5
    assert not machine.storage.exists(lock_path)
    with pytest.raises(FencedError, match="owns it now"):
        first.commit({order(0): 6})


def test_all_of_many_killed_members_are_found(machine: Machine) -> None:
    processes = [machine.process() for _ in range(20)]
    members = [member(process) for process in processes]
    for process in processes[1:]:
        machine.kill(process)

    for _ in range(4):
        machine.tick(members[0])

    groups = GroupCatalog(machine.engines[0].catalog)
    assert [row.member_id for row in groups.members("g")] == [members[0].member_id]
    assert machine.storage.list("locks") == [processes[0].liveness.path.split("/")[1]]


def test_a_stuck_member_loses_its_lease_and_joins_again(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, alive = member(machine.process()), member(machine.process())
    for _ in range(30):
        machine.clock.advance(10_000)
        alive.poll()
    assert numbers(alive) == []

    machine.clock.advance(10_000)
    alive.poll()

    assert numbers(alive) == [0, 1, 2, 3]
    with pytest.raises(FencedError):
        stuck.commit({order(0): 1})
    assert stuck.poll()
    assert numbers(stuck) == []
    assert "had not polled for 300 s" in caplog.text
    alive.poll()
    alive.hand_over()
    stuck.poll()
    assert len(stuck.owned) == 2


def test_a_member_that_polls_keeps_its_lease(machine: Machine) -> None:
    first, second = member(machine.process()), member(machine.process())
    first.poll()
    first.hand_over()

    for _ in range(20):
        machine.clock.advance(60_000)
        first.poll()
        second.poll()

    assert (len(first.owned), len(second.owned)) == (2, 2)


def test_a_commit_with_one_lost_partition_commits_nothing(machine: Machine) -> None:
    first, second = member(machine.process()), member(machine.process())
    lost = dict(first.owned)
    first.poll()
    first.hand_over()
    second.poll()
    first.owned = lost

    with pytest.raises(FencedError, match="Nothing was committed") as caught:
        first.commit({order(0): 9, order(2): 9})

    assert (caught.value.topic, caught.value.partition) == ("orders", 2)
    assert GroupCatalog(machine.engines[0].catalog).group_offsets("g") == {}
    assert first.poll()
    assert numbers(first) == [0, 1]


def test_owning_a_partition_again_is_another_generation(machine: Machine) -> None:
    first, second = member(machine.process()), member(machine.process())
    stale = dict(first.owned)
    first.poll()
    first.hand_over()
    second.leave()
    first.poll()
    assert numbers(first) == [0, 1, 2, 3]
    first.commit({order(0): 1, order(3): 1})

    first.owned = stale

    with pytest.raises(FencedError):
        first.commit({order(3): 5})


def test_a_partition_of_another_topic_cannot_be_committed(machine: Machine) -> None:
    first = member(machine.process())

    with pytest.raises(FencedError, match="does not own"):
        first.commit({TopicPartition("other", 0): 1})


def test_members_with_different_topics_share_a_group(machine: Machine) -> None:
    create(machine, "other", 2)
    first = member(machine.process(), topics=frozenset({"orders"}))
    second = member(machine.process(), topics=frozenset({"other"}))

    assert {partition.topic for partition in first.owned} == {"orders"}
    assert {partition.topic for partition in second.owned} == {"other"}


def test_two_consumers_of_one_store_are_two_members(machine: Machine) -> None:
    engine = machine.process()
    first, second = member(engine), member(engine)
    first.poll()
    first.hand_over()
    second.poll()

    assert len(first.owned) == len(second.owned) == 2


def test_groups_do_not_see_each_other(machine: Machine) -> None:
    first, second = member(machine.process(), "a"), member(machine.process(), "b")
    first.commit({order(0): 5})

    assert len(first.owned) == len(second.owned) == 4
    assert second.owned[order(0)].committed_offset is None


def test_a_topic_made_anew_starts_without_offsets(machine: Machine) -> None:
    first = member(machine.process())
    first.commit({order(0): 5})
    machine.engines[0].catalog.delete_topic("orders")
    machine.engines[0].tail.bump("topics_version")
    assert first.poll()
    assert numbers(first) == []

    create(machine, "orders", 2)

    assert first.poll()
    assert numbers(first) == [0, 1]
    assert first.owned[order(0)].committed_offset is None


def test_a_closed_store_is_refused(machine: Machine) -> None:
    engine = machine.process()
    first = member(engine)
    engine.close()

    with pytest.raises(StoreClosedError):
        first.commit({order(0): 1})


def test_a_group_with_live_members_is_not_reset_or_deleted(machine: Machine) -> None:
    engine = machine.process()
    member(engine)
    groups = GroupCatalog(machine.engines[0].catalog)

    remove_dead_members(machine.engines[0], "g")
    with pytest.raises(LockedError, match="live member"):
        groups.reset("g", [])
    machine.kill(engine)
    remove_dead_members(machine.engines[0], "g")

    groups.delete("g")
    assert groups.groups() == []
    with pytest.raises(UsageError, match="no consumer group"):
        groups.delete("g")


def test_a_member_that_renewed_its_lease_after_it_was_seen_stays(machine: Machine) -> None:
    seen_at = machine.clock.monotonic()
    alive = member(machine.process())
    groups = GroupCatalog(machine.engines[0].catalog)
    seen = groups.members("g")
    assert groups.renew("g", alive.member_id, int(seen_at * 1000) + 1_000_000)

    assert not groups.remove_dead("g", seen)

    assert [alive.member_id] == [row.member_id for row in groups.members("g")]
    assert groups.remove_dead("g", groups.members("g"))
    assert [] == groups.members("g")


def test_a_commit_from_before_a_partition_came_back_is_fenced(machine: Machine) -> None:
    first, second = member(machine.process()), member(machine.process())
    groups = GroupCatalog(machine.engines[0].catalog)
    machine.tick(first)
    before = dict(first.owned)
    assert first.hand_over()
    handed = groups.concerning("g", second.member_id)[0]
    assert handed.owner == second.member_id
    (row,) = [row for row in groups.members("g") if row.member_id == second.member_id]
    groups.join("g", row._replace(topics=frozenset()))  # wants nothing any more
    assert groups.hand_over("g", second.member_id)
    stale = before[order(handed.partition)]
    assert first.member_id == groups.partitions("g")[handed.partition].owner == stale.owner

    late = GroupOffset("g", stale.topic_id, stale.partition, 1, first.member_id, stale.generation)
    with pytest.raises(FencedError):
        groups.commit([late])
