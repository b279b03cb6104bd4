"""A disk in memory that remembers what a power failure could take away. Pure: no I/O, no threads.

Content: an `Inode` keeps, for every change since its last sync, what the change overwrote. From
that `image` builds what a crash may leave: each 4 KiB page in any version it had since the sync,
torn pages at 512 byte sectors, any of the sizes; pages in no particular order.

Names: a `NameTable` keeps the tree as programs see it, the tree that is durable, and the changes in
between. A crash may keep any of these, but never one without those it builds upon.

What is not modelled: damage to durable content, and changes by other machines.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, NamedTuple, TypeAlias

Keep: TypeAlias = Literal["none", "all", "random"]
"""What survives of everything not synced."""

PAGE_BYTES = 4096
SECTOR_BYTES = 512

_numbers = itertools.count(1)


class Change(NamedTuple):
    """One unsynced change of a file's content: bytes [position, position + length)."""

    position: int
    length: int
    old: bytes
    """What was there; ends early where the rest was zeros or beyond the end."""
    size_before: int
    is_cut: bool
    """A truncation to `position`: the size and the bytes go together, never one alone."""

    def pages(self) -> range:
        """Numbers of the pages it touches."""
        return _units(self.position, self.length, PAGE_BYTES)


class Inode:
    """Content of one file: what programs read, and what of it is durable.

    Args:
        data: The content, durable.
        tracked: Remember changes for `image`. Without it everything counts as durable.
    """

    __slots__ = ("_doubtful", "_tracked", "_unsynced", "data", "holders", "number", "words")

    def __init__(self, data: bytes = b"", *, tracked: bool = True) -> None:
        self.number = next(_numbers)
        self.data = bytearray(data)
        self.words: SharedWords | None = None
        """Set once the file is mapped; `data` then stays as it is on the disk."""
        self.holders: dict[object, bool] = {}
        """Who holds the lock on this file, and whether shared. Nobody does after a crash."""
        self._tracked = tracked
        self._unsynced: list[Change] = []
        self._doubtful: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data) if self.words is None else self.words.count * 8

    def read(self, length: int, position: int) -> bytes:
        """Bytes from `position`; fewer where the file ends."""
        if self.words is not None:
            return self.words.content()[position : position + length]
        with memoryview(self.data) as view:
            return bytes(view[position : position + length])

    def write(self, content: bytes, position: int) -> None:
        """Put `content` at `position`, with zeros in a gap before it."""
        data = self.data
        end = position + len(content)
        if self._tracked:
            self._remember(position, len(content), self.read(len(content), position))
        if position > len(data):
            data.extend(bytes(position - len(data)))
        data[position:end] = content

    def truncate(self, size: int) -> None:
        """Cut to, or extend with zeros to, `size`."""
        data = self.data
        if size < len(data):
            if self._tracked:
                length = len(data) - size
                self._remember(size, length, self.read(length, size), is_cut=True)
            del data[size:]
        else:
            if self._tracked:
                self._remember(len(data), 0, b"")
            data.extend(bytes(size - len(data)))

    def _remember(self, position: int, length: int, old: bytes, *, is_cut: bool = False) -> None:
        if old.count(0) == len(old):
            old = b""  # the zeros of a preallocated file need not be kept twice
        self._unsynced.append(Change(position, length, old, len(self.data), is_cut))

    def sync(self) -> None:
        """Make the content durable, except pages that an earlier failed sync gave up."""
        if self.words is not None:
            self.data[:] = self.words.content()
        if self._doubtful:
            for change in self._unsynced:
                for page in change.pages():
                    self._doubtful.pop(page, None)
        self._unsynced.clear()

    def fail_sync(self) -> None:
        """Give up the unsynced pages: later syncs succeed without writing them.

        This is what Linux does after an I/O error: the pages are marked clean and stay readable
        until they are evicted or power fails. Only writing a page again brings it to the disk.
        """
        if not self._unsynced:
            return
        durable = self.image("none", Random(0))  # noqa: S311 - keeps no random choice
        for page in {page for change in self._unsynced for page in change.pages()}:
            start = page * PAGE_BYTES
            old = durable[start : start + PAGE_BYTES]
            self._doubtful.setdefault(page, old.ljust(PAGE_BYTES, b"\0"))
        self._unsynced.clear()

    def image(self, keep: Keep, random: Random) -> bytes:
        """Content after a power failure."""
        if self.words is not None:
            return self.words.image(keep, random, bytes(self.data))
        if keep == "all":
            return bytes(self.data)
        changes = self._unsynced
        scratch = bytearray(self.data)
        longest = max((change.size_before for change in changes), default=0)
        scratch.extend(bytes(max(0, longest - len(scratch))))
        if keep == "none":
            kept_size = 0
            for change in reversed(changes):
                _revert(scratch, change, change.position, change.position + change.length)
        else:
            kept_size = _biased(random, 0, len(changes))
            self._revert_some(scratch, kept_size, random)
        for page, old in self._doubtful.items():
            if keep == "none" or random.random() < 0.5:
                end = min(len(scratch), (page + 1) * PAGE_BYTES)
                scratch[page * PAGE_BYTES : end] = old[: max(0, end - page * PAGE_BYTES)]
        size = changes[kept_size].size_before if kept_size < len(changes) else len(self.data)
        return bytes(scratch[:size])

    def _revert_some(self, scratch: bytearray, kept_size: int, random: Random) -> None:
        """Take each sector back to a version it had; `kept_size` changes of the size survive."""
        changes = self._unsynced
        cuts = [index for index, change in enumerate(changes) if change.is_cut]
        # A truncation happens as a whole: no page is older than one that survived, none newer
        # than one that did not.
        low = max((index + 1 for index in cuts if index < kept_size), default=0)
        high = min((index for index in cuts if index >= kept_size), default=len(changes))
        versions = _sector_versions(changes, low, high, random)
        for index in reversed(range(len(changes))):
            change = changes[index]
            for sector in _units(change.position, change.length, SECTOR_BYTES):
                if index >= versions[sector]:
                    start = sector * SECTOR_BYTES
                    _revert(scratch, change, start, start + SECTOR_BYTES)


class SharedWords:
    """Anonymous memory that stands for a mapped file; views of it see each other's stores."""

    __slots__ = ("_mapping", "count")

    # Reserved address space; memory is used only for words that were touched.
    COUNT_MAX = 2 * 1024 * 1024

    def __init__(self, content: bytes) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANON
        self._mapping = mmap.mmap(-1, self.COUNT_MAX * 8, flags=flags)
        self.count = len(content) // 8
        self._mapping[: len(content)] = content

    def view(self) -> memoryview:
        """All words, format "q"."""
        return memoryview(self._mapping)[: self.count * 8].cast("q")

    def content(self) -> bytes:
        """All words as bytes."""
        return self._mapping[: self.count * 8]

    def image(self, keep: Keep, random: Random, durable: bytes) -> bytes:
        """Content after a power failure: the system writes mapped pages when it likes, if ever."""
        if keep == "none":
            return durable
        content = self.content()
        if keep == "all":
            return content
        durable = durable.ljust(len(content), b"\0")
        chosen = bytearray(durable)
        # Almost all of them are zeros no process has touched: whole pages are compared first.
        for page in range(0, len(content), PAGE_BYTES):
            if content[page : page + PAGE_BYTES] != durable[page : page + PAGE_BYTES]:
                for start in range(page, min(page + PAGE_BYTES, len(content)), 8):
                    if random.random() < 0.5:
                        chosen[start : start + 8] = content[start : start + 8]
        return bytes(chosen[: 8 * _biased(random, 0, self.count)])


def _units(position: int, length: int, unit: int) -> range:
    return range(position // unit, -(-(position + length) // unit)) if length else range(0)


def _biased(random: Random, low: int, high: int) -> int:
    """A number from [low, high]; the ends, which a kernel under no pressure produces, often."""
    return random.choice((low, high, random.randint(low, high)))


def _revert(scratch: bytearray, change: Change, start: int, stop: int) -> None:
    """Put back what `change` overwrote within [start, stop)."""
    start = max(start, change.position)
    stop = min(stop, change.position + change.length)
    old = change.old[start - change.position : stop - change.position]
    if start < stop:
        scratch[start:stop] = old.ljust(stop - start, b"\0")


def _sector_versions(
    changes: Sequence[Change], low: int, high: int, random: Random
) -> dict[int, int]:
    """For each sector the number of changes that reached it before the power went."""
    in_order = random.random() < 0.25
    everywhere = _biased(random, low, high)
    touched: dict[int, list[int]] = {}
    for index, change in enumerate(changes):
        for page in change.pages():
            touched.setdefault(page, [low, high]).append(index + 1)
    versions = {}
    for page, candidates in touched.items():
        possible = [version for version in candidates if low <= version <= high]
        chosen = everywhere if in_order else random.choice(possible)
        other = random.choice(possible) if random.random() < 0.25 else chosen
        first = page * (PAGE_BYTES // SECTOR_BYTES)
        for sector in range(first, first + PAGE_BYTES // SECTOR_BYTES):
            versions[sector] = chosen if chosen == other else random.choice((chosen, other))
    return versions


class NameChange(NamedTuple):
    """One change of the tree that is not durable yet."""

    kind: Literal["create", "remove", "remove_directory", "rename"]
    path: str
    target: str = ""
    inode: Inode | None = None

    def paths(self) -> tuple[str, ...]:
        """The names it changes."""
        return (self.path, self.target) if self.kind == "rename" else (self.path,)

    def builds_on(self, other: NameChange) -> bool:
        """True if this change could not have happened without `other`, an earlier one.

        A renamed directory does not build upon what was done inside it before: its new name may
        be durable while a file in it is not.
        """
        if self.inode is not None and self.inode is other.inode:
            return True
        emptied = {"remove_directory": self.path, "rename": self.target}.get(self.kind)
        return any(
            mine == theirs
            or _is_below(mine, theirs)
            or (mine == emptied and _is_below(theirs, mine))
            for mine in self.paths()
            for theirs in other.paths()
        )

    def after(self, rename: NameChange) -> NameChange:
        """The same change in a tree in which a directory has its later name already."""
        return self._replace(path=_renamed(self.path, rename), target=_renamed(self.target, rename))


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory + "/")


def _renamed(path: str, rename: NameChange) -> str:
    if path == rename.path or _is_below(path, rename.path):
        return rename.target + path[len(rename.path) :]
    return path


Entries: TypeAlias = dict[str, dict[str, Inode | None]]
"""Directory -> name -> content; None stands for a directory."""


class NameTable:
    """The directories: as programs see them, as they are durable, and what lies between.

    Args:
        tracked: Remember what is not durable. Without it every change counts as durable.
    """

    __slots__ = ("_durable", "_pending", "_tracked", "entries")

    def __init__(self, *, tracked: bool = True) -> None:
        self.entries: Entries = {"": {}}
        self._durable: Entries = {"": {}}
        self._pending: list[NameChange] = []
        self._tracked = tracked

    def find(self, path: str) -> Inode | None:
        """The file of that name, or None."""
        directory, _, name = path.rpartition("/")
        return self.entries.get(directory, {}).get(name)

    def is_directory(self, path: str) -> bool:
        """True if there is a directory of that name."""
        return path in self.entries

    def change(self, change: NameChange) -> None:
        """Change the tree that programs see. The caller has checked that it can be done."""
        if change.inode is None:
            change = change._replace(inode=self.find(change.path))
        _apply(self.entries, change)
        if self._tracked:
            self._pending.append(change)

    def make_directory(self, path: str) -> None:
        """Create one directory, durably, as `Storage.make_directory` promises."""
        directory, _, name = path.rpartition("/")
        self.entries[directory][name] = None
        self.entries[path] = {}
        if self._tracked:
            # The directories above may have been renamed a moment ago.
            self.sync("")
            for end in range(1, len(path)):
                if path[end] == "/":
                    self.sync(path[:end])
            self._durable[directory][name] = None
            self._durable[path] = {}

    def sync(self, directory: str) -> None:
        """Make the names in `directory` durable, with the changes elsewhere they build upon."""
        chosen: list[NameChange] = []
        for change in reversed(self._pending):
            inside = any(path.rpartition("/")[0] == directory for path in change.paths())
            if inside or any(later.builds_on(change) for later in chosen):
                chosen.append(change)
            if change.target and (
                directory == change.target or _is_below(directory, change.target)
            ):
                # Further back in time the directory had another name.
                directory = change.path + directory[len(change.target) :]
        rest: list[NameChange] = []
        for change in self._pending:
            if not any(change is one for one in chosen):
                rest.append(change)
                continue
            _apply(self._durable, change)
            if change.kind == "rename":
                rest = [earlier.after(change) for earlier in rest]
        self._pending = rest

    def image(self, keep: Keep, random: Random) -> Entries:
        """The tree after a power failure. Its inodes are still those of before."""
        if keep == "all":
            return _copy(self.entries)
        entries = _copy(self._durable)
        if keep == "none":
            return entries
        lost: list[NameChange] = []
        chance = random.choice((0.1, 0.5, 0.9))
        for change in self._pending:
            if random.random() > chance or any(change.builds_on(earlier) for earlier in lost):
                lost.append(change)
            else:
                _apply(entries, change)
        return entries


def walk(entries: Entries) -> Iterator[tuple[str, str, Inode]]:
    """All files of a tree as (directory, name, inode), in the order of their names."""
    for directory in sorted(entries):
        for name in sorted(entries[directory]):
            inode = entries[directory][name]
            if inode is not None:
                yield directory, name, inode


def after_power_failure(names: NameTable, keep: Keep, random: Random) -> Entries:
    """The whole disk after a power failure: new inodes whose content is durable."""
    entries = names.image(keep, random)
    replaced: dict[int, Inode] = {}
    for directory, name, inode in walk(entries):
        if inode.number not in replaced:
            replaced[inode.number] = Inode(inode.image(keep, random))
        entries[directory][name] = replaced[inode.number]
    return entries


def table_of(entries: Entries) -> NameTable:
    """A table in which all of `entries` is durable."""
    table = NameTable()
    table.entries = entries
    table._durable = _copy(entries)  # noqa: SLF001 - a constructor of the same module
    return table


def _copy(entries: Entries) -> Entries:
    return {directory: dict(names) for directory, names in entries.items()}


def _apply(entries: Entries, change: NameChange) -> None:
    directory, _, name = change.path.rpartition("/")
    if change.kind == "create":
        entries[directory][name] = change.inode
        return
    moved = entries[directory].pop(name, None)
    if change.kind == "rename":
        target_directory, _, target_name = change.target.rpartition("/")
        entries[target_directory][target_name] = moved
        if moved is None:
            below = [path for path in entries if _renamed(path, change) != path]
            for path in below:
                entries[_renamed(path, change)] = entries.pop(path)
    elif change.kind == "remove_directory":
        entries.pop(change.path, None)
