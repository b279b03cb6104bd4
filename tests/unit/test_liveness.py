"""Locks that die with their processes, and who removes their files."""

import pytest

from millstream.liveness import Liveness
from millstream.storage import PosixStorage, Storage
from millstream.testing import MemoryStorage


@pytest.fixture(params=["directory", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    if request.param == "memory":
        return MemoryStorage()
    return PosixStorage(str(tmp_path_factory.mktemp("store")))


def die(liveness: Liveness) -> None:
    """Let go of the lock without removing its file."""
    assert liveness._lock is not None
    liveness._lock.close()


def test_a_process_is_alive_until_it_dies(storage: Storage) -> None:
    one, other = Liveness(storage), Liveness(storage)
    path = one.path
    assert one.is_alive(path)
    assert other.is_alive(path)
    die(one)
    assert not other.is_alive(path)


def test_an_orderly_end_leaves_no_file(storage: Storage) -> None:
    liveness = Liveness(storage)
    path = liveness.path
    liveness.close()
    assert [] == storage.list("locks")
    assert not Liveness(storage).is_alive(path)


def test_the_living_are_not_buried(storage: Storage) -> None:
    one, other = Liveness(storage), Liveness(storage)
    other.bury(one.path)
    assert storage.exists(one.path)
    one.close()


def test_who_adds_a_lock_removes_those_of_the_dead(storage: Storage) -> None:
    """Nobody else looks at the lock of a process that died with no work open."""
    alive = Liveness(storage)
    kept = [alive.path]
    storage.lock("locks/owner-name.lock").close()
    kept.append("locks/owner-name.lock")
    for _ in range(3):
        dead = Liveness(storage)
        assert dead.path
        die(dead)
    last = Liveness(storage)
    kept.append(last.path)
    assert sorted(kept) == [f"locks/{name}" for name in storage.list("locks")]
    alive.close()
    last.close()


class BuriedAtOnce(MemoryStorage):
    """Another process buries the next lock file before its maker has locked it."""

    buried = 0

    def exists(self, path: str) -> bool:
        if self.buried == 0 and path.endswith(".lock"):
            self.buried += 1
            self.remove(path)
        return super().exists(path)


def test_a_lock_that_was_buried_at_birth_is_replaced() -> None:
    storage = BuriedAtOnce()
    liveness = Liveness(storage)
    assert storage.exists(liveness.path)
    assert 1 == storage.buried
    liveness.close()
