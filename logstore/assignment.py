"""Who reads which partition: sticky, balanced, deterministic. Pure; `membership.py` applies it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from .record import TopicPartition


def assign(
    partitions: Sequence[TopicPartition],
    members: Mapping[str, frozenset[str]],
    current: Mapping[TopicPartition, str],
) -> dict[TopicPartition, str]:
    """Give every partition a member that subscribes to its topic.

    Partitions that nobody subscribes to are left out. The result is balanced: no partition, nor
    any chain of partitions, can move so that a member with at least two partitions fewer gains
    one. With equal subscriptions that means counts differ by at most one, and then as few
    partitions as possible leave their `current` member. The same input gives the same result.

    Args:
        partitions: All partitions to be read.
        members: Member to the topics it subscribes to.
        current: Who reads a partition now; entries for unknown members or partitions are ignored.

    >>> orders = [TopicPartition("orders", n) for n in range(3)]
    >>> topics = frozenset({"orders"})
    >>> first = assign(orders, {"a": topics}, {})
    >>> second = assign(orders, {"a": topics, "b": topics}, first)
    >>> [second[partition] for partition in orders]
    ['a', 'a', 'b']
    """
    result: dict[TopicPartition, str] = {}
    load = dict.fromkeys(sorted(members), 0)
    readers = {
        topic: [member for member in load if topic in members[member]]
        for topic in {partition.topic for partition in partitions}
    }
    new: list[TopicPartition] = []
    for partition in sorted(set(partitions)):
        owner = current.get(partition)
        if owner is not None and partition.topic in members.get(owner, ()):
            result[partition] = owner
            load[owner] += 1
        elif readers[partition.topic]:
            new.append(partition)
    # Those with the fewest possible readers choose first: they have no other choice.
    new.sort(key=lambda partition: len(readers[partition.topic]))
    for partition in new:
        # min() takes the first of equals: members are in order.
        owner = min(readers[partition.topic], key=load.__getitem__)
        result[partition] = owner
        load[owner] += 1
    _balance(result, load, readers, current)
    return result


def _balance(
    result: dict[TopicPartition, str],
    load: dict[str, int],
    readers: Mapping[str, list[str]],
    current: Mapping[TopicPartition, str],
) -> None:
    """Move partitions from the most to the least loaded as long as that evens them out.

    Every pass lowers the sum of squared loads, so this ends.
    """
    owned: dict[str, dict[str, list[TopicPartition]]] = {member: {} for member in load}
    for partition in sorted(result):
        owned[result[partition]].setdefault(partition.topic, []).append(partition)
    stuck: set[str] = set()
    while True:
        # The largest load first: within a chain the members between keep theirs.
        givers = sorted((m for m in load if m not in stuck), key=lambda m: (-load[m], m))
        if not givers:
            return
        chain = _chain(givers[0], load, readers, owned)
        if not chain:
            stuck.add(givers[0])
            continue
        # A chain found for one member can open a way for another that had none.
        stuck.clear()
        for giver, topic, taker in chain:
            moved = _least_missed(owned[giver][topic], giver, current)
            owned[giver][topic].remove(moved)
            owned[taker].setdefault(topic, []).append(moved)
            owned[taker][topic].sort()
            result[moved] = taker
        load[chain[0][0]] -= 1
        load[chain[-1][2]] += 1


def _chain(
    start: str,
    load: Mapping[str, int],
    readers: Mapping[str, list[str]],
    owned: Mapping[str, Mapping[str, list[TopicPartition]]],
) -> list[tuple[str, str, str]]:
    """The shortest chain of (giver, topic, taker) from `start` to a member that shall have more.

    Among the shortest, the one that ends at the least loaded member. Empty if there is none.
    """
    came_from: dict[str, tuple[str, str]] = {}
    depth = {start: 0}
    queue = deque([start])
    best: str | None = None
    while queue:
        giver = queue.popleft()
        if best is not None and depth[giver] >= depth[best]:
            break
        for topic in sorted(topic for topic, held in owned[giver].items() if held):
            for taker in readers[topic]:
                if taker in depth:
                    continue
                depth[taker] = depth[giver] + 1
                came_from[taker] = (giver, topic)
                queue.append(taker)
                if load[taker] <= load[start] - 2 and (best is None or load[taker] < load[best]):
                    best = taker
    chain: list[tuple[str, str, str]] = []
    while best is not None and best != start:
        giver, topic = came_from[best]
        chain.append((giver, topic, best))
        best = giver
    return chain[::-1]


def _least_missed(
    held: Sequence[TopicPartition], giver: str, current: Mapping[TopicPartition, str]
) -> TopicPartition:
    """The partition to move: one the giver does not read yet if there is one, else the last."""
    return max(held, key=lambda partition: (current.get(partition) != giver, partition))
