from collections import Counter
from collections.abc import Mapping

from hypothesis import given, strategies as st

from millstream.assignment import assign
from millstream.record import TopicPartition

ORDERS = frozenset({"orders"})
MEMBERS = st.sampled_from("abcdefg")


def partitions(topic: str, count: int) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(count)]


def loads(result: Mapping[TopicPartition, str], members: Mapping[str, frozenset[str]]) -> list[int]:
    counts = Counter(result.values())
    return [counts[member] for member in members]


def test_one_member_reads_everything() -> None:
    assert assign(partitions("orders", 3), {"a": ORDERS}, {}) == dict.fromkeys(
        partitions("orders", 3), "a"
    )


def test_nobody_reads_what_nobody_subscribes_to() -> None:
    assert assign(partitions("orders", 3), {}, {}) == {}
    assert assign(partitions("other", 3), {"a": ORDERS}, {}) == {}


def test_more_members_than_partitions_leaves_some_idle() -> None:
    members = dict.fromkeys("abc", ORDERS)

    assert assign(partitions("orders", 2), members, {}) == {
        TopicPartition("orders", 0): "a",
        TopicPartition("orders", 1): "b",
    }


def test_a_dead_members_partitions_are_all_that_moves() -> None:
    members = dict.fromkeys("abc", ORDERS)
    before = assign(partitions("orders", 9), members, {})

    after = assign(partitions("orders", 9), dict.fromkeys("ac", ORDERS), before)

    assert all(after[p] == before[p] for p in before if before[p] != "b")
    assert sorted(loads(after, dict.fromkeys("ac", ORDERS))) == [4, 5]


def test_a_member_that_reads_only_one_topic_gets_it_and_others_make_room() -> None:
    everything = partitions("orders", 2) + partitions("other", 2)
    members = {"a": frozenset({"orders", "other"}), "b": ORDERS}
    current = dict.fromkeys(everything, "a")

    after = assign(everything, members, current)

    assert loads(after, members) == [2, 2]
    assert all(after[p] == "a" for p in partitions("other", 2))


def test_a_chain_of_moves_evens_out_what_no_single_move_can() -> None:
    """a may give only to b, b only to c: a has 2, b has 1, c has 0."""
    everything = [*partitions("ab", 2), *partitions("bc", 1)]
    members = {"a": frozenset({"ab"}), "b": frozenset({"ab", "bc"}), "c": frozenset({"bc"})}
    current = {everything[0]: "a", everything[1]: "a", everything[2]: "b"}

    assert loads(assign(everything, members, current), members) == [1, 1, 1]


@given(
    count=st.integers(0, 30),
    members=st.sets(MEMBERS, min_size=1),
    owners=st.lists(MEMBERS | st.none(), min_size=30, max_size=30),
)
def test_equal_subscriptions_are_balanced_with_the_fewest_moves(
    count: int, members: set[str], owners: list[str | None]
) -> None:
    everything = partitions("orders", count)
    current = {p: owner for p, owner in zip(everything, owners, strict=False) if owner is not None}
    topics = dict.fromkeys(members, ORDERS)

    result = assign(everything, topics, current)

    assert set(result) == set(everything)
    counts = sorted(loads(result, topics), reverse=True)
    assert counts[0] - counts[-1] <= 1
    # The most that can stay: the fullest members keep the larger shares.
    before = sorted(loads(current, topics), reverse=True)
    can_stay = sum(min(have, share) for have, share in zip(before, counts, strict=True))
    assert sum(current.get(p) == result[p] for p in everything) == can_stay


@st.composite
def groups(
    draw: st.DrawFn,
) -> tuple[list[TopicPartition], dict[str, frozenset[str]], dict[TopicPartition, str]]:
    topics = ["t", "u", "v", "w"]
    everything = [p for topic in topics for p in partitions(topic, draw(st.integers(0, 4)))]
    subscriptions = st.frozensets(st.sampled_from(topics), min_size=1)
    members = draw(st.dictionaries(st.sampled_from("abcd"), subscriptions))
    owners = draw(st.lists(MEMBERS | st.none(), min_size=len(everything), max_size=len(everything)))
    current = {p: owner for p, owner in zip(everything, owners, strict=True) if owner is not None}
    return everything, members, current


def least_squares(everything: list[TopicPartition], members: Mapping[str, frozenset[str]]) -> int:
    """The evenest possible distribution by dynamic programming over sorted load vectors."""
    order = sorted(members)
    states = {(0,) * len(order)}
    for partition in everything:
        fits = [i for i, member in enumerate(order) if partition.topic in members[member]]
        if fits:
            states = {(*s[:i], s[i] + 1, *s[i + 1 :]) for s in states for i in fits}
    return min(sum(load * load for load in state) for state in states)


@given(group=groups())
def test_any_subscriptions_are_as_even_as_they_can_be_and_stay_so(
    group: tuple[list[TopicPartition], dict[str, frozenset[str]], dict[TopicPartition, str]],
) -> None:
    everything, members, current = group

    result = assign(everything, members, current)

    subscribed = frozenset[str]().union(*members.values())
    assert set(result) == {p for p in everything if p.topic in subscribed}
    assert all(p.topic in members[owner] for p, owner in result.items())
    assert sum(n * n for n in loads(result, members)) == least_squares(everything, members)
    assert assign(everything, members, result) == result
    assert assign(everything[::-1], dict(reversed(members.items())), current) == result
