"""Who may commit transactions: names that one process has at a time, and owners without a name.

An owner numbers its transactions and decides them in order; its epoch rises whenever it is
acquired, which aborts what it had open and fences whoever was it before. What an owner is in the
catalog is docs/decisions/0004.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final, NamedTuple, Self

from .clock import Clock
from .config import check_printable_name
from .engine import Engine
from .errors import LockedError, MillstreamError, UsageError
from .owner_catalog import NUMBERS_MAX, DatabasePlace, OwnerCatalog, OwnerRow
from .storage import Lock

TIMEOUT: Final = "10m"
"""How long a transaction may keep readers waiting, if its owner lives and has no name."""

PROBE_SECONDS: Final = 0.1
"""Who asks for the lock of another to see whether it lives holds it for some 20 us."""


SETTLE_SECONDS: Final = 1.0
"""Between two attempts to abort what could not be aborted."""


class Terms(NamedTuple):
    """What others have to know about the transactions of an owner."""

    timeout_ms: int | None = None
    """Whoever has to wait for one that is older may abort it. None: only if its owner is dead."""
    place: DatabasePlace | None = None
    """A database of the user's, which tells what became of them."""


NO_TERMS: Final = Terms()


class Ownership:
    """The exclusive right to a name, for example to run a pipeline. Dies with the process.

    Made by `Store.own`. Its `epoch` rises with every acquisition; transactions of an earlier
    epoch are fenced.
    """

    def __init__(self, name: str, row: OwnerRow, lock: Lock | None, terms: Terms) -> None:
        self.name = name
        self.terms = terms
        self.epoch = row.epoch
        self.owner_id = row.id
        self.decided = row.decided
        """Number of the last decided transaction; the next one has the number after it."""
        self.fenced = False
        """Whether a transaction was aborted by somebody else: it commits nothing any more."""
        self._lock = lock
        self._in_use = threading.Lock()
        """Held while a transaction is open, and for ever if nobody knows what became of one."""
        self._in_doubt = False

    def __repr__(self) -> str:
        return f"<Ownership {self.name!r} epoch {self.epoch}>"

    def begin(self) -> None:
        """A transaction begins. Two at a time would have one number, and be decided as one.

        Raises:
            UsageError: One is open, or was left in an unknown state.
        """
        if not self._in_use.acquire(blocking=False):
            if self._in_doubt:
                raise UsageError(
                    f"what became of the last transaction of {self.name!r} is unknown: close it,"
                    " and acquire the name again with own(), which decides that"
                )
            raise UsageError(
                f"{self.name!r} has a transaction open, and has one at a time: end that first"
            )

    def end(self, state: str) -> None:
        """The transaction that began has ended in this state."""
        if state in {"committed", "aborted"}:
            self._in_use.release()
        else:
            self._in_doubt = True

    def hang_on(self, engine: Engine, place: DatabasePlace | None) -> None:
        """Have the database at `place` tell what becomes of its transactions from now on."""
        if self.terms.place != place:
            OwnerCatalog(engine.catalog).set_terms(self.owner_id, self.terms.timeout_ms, place)
            self.terms = self.terms._replace(place=place)

    def close(self) -> None:
        """Give the name up. Idempotent."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def own(engine: Engine, name: str, terms: Terms) -> Ownership:
    """Acquire `name` exclusively.

    Raises:
        LockedError: A live process has it; the message names its pid.
    """
    engine.ensure_writable()
    check_printable_name(name, "a name to own")
    engine.storage.make_directory("locks")
    path = f"locks/owner-{name.encode().hex()}.lock"
    if len(path) > 240:
        raise UsageError(f"the name {name!r} is too long to own: use at most 100 characters")
    lock = engine.storage.lock(path)
    try:
        taken = not _acquire(lock, engine.clock)
        former = engine.catalog.owner_named(name) if taken else None
        row = None if taken else engine.decisions.acquire(name, path, engine.pid)
        if row is not None:
            OwnerCatalog(engine.catalog).set_terms(row.id, *terms)
    except BaseException:
        lock.close()
        raise
    if row is None:
        lock.close()
        pid = former.pid if former else 0
        raise LockedError(
            f"{name!r} is run by process {pid}{', this one' if pid == engine.pid else ''}: end that"
            " run first, or use another name",
            path=path,
        )
    # Readers that wait for a transaction the former owner left open can go on.
    engine.tail.bump("transactions_version")
    return Ownership(name, row, lock, terms)


def _acquire(lock: Lock, clock: Clock) -> bool:
    """Take the lock of a name, though somebody may be asking right now whether its owner lives."""
    deadline = clock.monotonic() + PROBE_SECONDS
    while not lock.try_acquire():
        if clock.monotonic() >= deadline:
            return False
        clock.sleep(0.001)
    return True


class AnonymousOwners:
    """Owners of a store's transactions that have no name: one for each that is open at a time.

    Thread-safe. An owner whose last transaction is in an unknown state is acquired again, which
    aborts what is open; in the background, again and again, for readers wait for that.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._catalog = OwnerCatalog(engine.catalog)
        self._free: list[Ownership] = []
        self._doubtful: list[str] = []
        self._hanging: set[str] = set()
        """Names among them whose last transaction may be committed in a database."""
        self._made = 0

    def take(self, terms: Terms = NO_TERMS) -> Ownership:
        """An owner nobody else uses.

        Raises:
            UndecidedError, LockedError, StorageError: What became of an earlier transaction with a
                database is not known yet, and it may have committed what this one would again.
        """
        self._engine.ensure_writable()
        self._settle_hanging()
        with self._guard:
            for number, owner in enumerate(self._free):
                if owner.terms == terms:
                    return self._free.pop(number)
            owner_or_name = self._free.pop() if self._free else self._name()
        if isinstance(owner_or_name, str):
            return self._acquire(owner_or_name, terms)
        try:
            self._catalog.set_terms(owner_or_name.owner_id, *terms)
        except BaseException:
            self.give_back(owner_or_name, "unknown")
            raise
        owner_or_name.terms = terms
        return owner_or_name

    def _settle_hanging(self) -> None:
        with self._guard:
            names = [name for name in self._doubtful if name in self._hanging]
            self._doubtful = [name for name in self._doubtful if name not in names]
        while names:
            name = names.pop()
            try:
                owner = self._acquire(name, NO_TERMS)
            except BaseException:
                with self._guard:
                    self._doubtful += names
                raise
            with self._guard:
                self._free.append(owner)

    def _name(self) -> str:
        if self._doubtful:
            return self._doubtful.pop()
        self._made += 1
        return f"transaction {self._made} of {self._engine.liveness.path}"

    def give_back(self, owner: Ownership, state: str) -> None:
        """Done with; `state` is that of its last transaction."""
        # One that has used its numbers up is acquired again, too: that is a new owner.
        known = state in {"committed", "aborted"} and owner.decided < NUMBERS_MAX
        known = known and not owner.fenced
        with self._guard:
            if known:
                self._free.append(owner)
            else:
                self._doubtful.append(owner.name)
                if owner.terms.place is not None:
                    self._hanging.add(owner.name)
        if not known:
            self._settle_later()

    def settle(self) -> None:
        """Acquire again the owners in doubt; try again later what fails, on a full disk say."""
        while True:
            with self._guard:
                if not self._doubtful:
                    return
                name = self._doubtful.pop()
            try:
                owner = self._acquire(name, NO_TERMS)
            except MillstreamError:
                self._settle_later()
                return
            with self._guard:
                self._free.append(owner)

    def close(self) -> None:
        """Before the store closes: let go of databases in which nothing is undecided."""
        with self._guard:
            owners = [owner for owner in self._free if owner.terms.place is not None]
        for owner in owners:
            # If it fails, whoever opens the store next finds out that nothing is open.
            with contextlib.suppress(MillstreamError):
                self._engine.decisions.let_go(owner.owner_id, owner.decided)

    def _acquire(self, name: str, terms: Terms) -> Ownership:
        engine = self._engine
        try:
            row = engine.decisions.acquire(name, engine.liveness.path, engine.pid)
            self._catalog.set_terms(row.id, *terms)
        except BaseException:
            with self._guard:
                self._doubtful.append(name)
            raise
        with self._guard:
            self._hanging.discard(name)
        engine.tail.bump("transactions_version")
        return Ownership(name, row, None, terms)

    def _settle_later(self) -> None:
        self._engine.background.submit((self, "settle"), self.settle, delay_seconds=SETTLE_SECONDS)
