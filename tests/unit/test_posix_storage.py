"""What only a directory has: the limits of the system, other processes, descriptors."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream.errors import StorageError
from millstream.storage import WRITE_BYTES_MAX, PosixStorage


def create(storage: PosixStorage, path: str) -> None:
    storage.open(path, "x").close()


def test_the_root_is_made_with_its_parents_but_not_to_read(tmp_path: Path) -> None:
    PosixStorage(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(StorageError) as caught:
        PosixStorage(tmp_path / "missing", read_only=True)
    assert caught.value.errno == errno.ENOENT
    assert not (tmp_path / "missing").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot create a store"):
        PosixStorage(tmp_path / "f")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    (tmp_path / "f").symlink_to("/dev/full")
    with contextlib.closing(storage.open("f", "rw")) as file:
        with pytest.raises(StorageError, match="free space and try again") as caught:
            file.write([b"abc"], 64)
        assert (caught.value.errno, caught.value.path, caught.value.position) == (
            errno.ENOSPC,
            "f",
            64,
        )


@contextlib.contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    old_soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (old_soft, hard))


def test_a_write_cut_short_by_the_system_ends_in_its_reason(tmp_path: Path) -> None:
    """The first call writes up to the limit and reports success; only the next one fails."""
    storage = PosixStorage(tmp_path)
    limit = 1 << 20
    with contextlib.closing(storage.open("f", "x")) as file:
        with (
            limited(resource.RLIMIT_FSIZE, limit),
            pytest.raises(StorageError, match="ulimit -f") as caught,
        ):
            file.write([b"a" * limit, b"b" * limit], 10)
        assert caught.value.errno == errno.EFBIG
        assert file.size() == limit


def test_too_many_open_files_says_what_to_do(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    create(storage, "f")
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    with (
        limited(resource.RLIMIT_NOFILE, min(3, highest)),
        pytest.raises(StorageError, match="ulimit -n") as caught,
    ):
        storage.open("f", "r")
    assert caught.value.errno == errno.EMFILE
    storage.open("f", "r").close()


def test_a_missing_permission_says_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may do everything")
    storage = PosixStorage(tmp_path)
    create(storage, "f")
    (tmp_path / "f").chmod(0o444)
    with pytest.raises(StorageError, match="permission denied"):
        storage.open("f", "rw")


def test_short_writes_and_short_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, pwritev = os.pread, os.pwritev

    def stingy_pwritev(descriptor: int, buffers: list[bytes], position: int) -> int:
        return pwritev(descriptor, [b"".join(buffers)[:7]], position)

    def stingy_pread(descriptor: int, length: int, position: int) -> bytes:
        return pread(descriptor, min(length, 5), position)

    monkeypatch.setattr(os, "pwritev", stingy_pwritev)
    monkeypatch.setattr(os, "pread", stingy_pread)
    buffers = [b"", b"abc", b"", b"defghijklmnopqrstuvwxyz", b"0123456789"]
    with contextlib.closing(PosixStorage(tmp_path).open("f", "x")) as file:
        file.write(buffers, 2)
        assert file.read(100, 2) == b"".join(buffers)
        assert file.read(12, 4) == b"cdefghijklmn"


def test_long_writes_go_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, sizes = os.pwritev, []

    def counted(descriptor: int, buffers: list[bytes], position: int) -> int:
        sizes.append(pwritev(descriptor, buffers, position))
        return sizes[-1]

    monkeypatch.setattr(os, "pwritev", counted)
    most = WRITE_BYTES_MAX
    wide = memoryview(bytes(range(256)) * (most // 256)).cast("q")
    buffers = [b"a" * (most - 1), b"", wide, b"b" * (2 * most)]
    with contextlib.closing(PosixStorage(tmp_path).open("f", "x")) as file:
        file.write([b"c" * most], 3)
        file.write(buffers, most + 3)
        assert file.read(6 * most, 3) == b"".join([b"c" * most, *buffers])
    assert [most, most - 3, most, most, most, 2] == sizes


def test_a_system_that_accepts_nothing_is_an_error_not_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accept_nothing(_descriptor: int, _buffers: list[bytes], _position: int) -> int:
        return 0

    monkeypatch.setattr(os, "pwritev", accept_nothing)
    with (
        contextlib.closing(PosixStorage(tmp_path).open("f", "x")) as file,
        pytest.raises(StorageError) as caught,
    ):
        file.write([b"abc"], 0)
    assert caught.value.errno == errno.EIO


def test_a_failed_sync_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "fsync" if sys.platform == "darwin" else "fdatasync", fail)
    with contextlib.closing(PosixStorage(tmp_path).open("f", "x")) as file:
        if sys.platform == "darwin":
            pytest.skip("F_FULLFSYNC does not go through os")
        with pytest.raises(StorageError, match="close and reopen the store") as caught:
            file.sync()
    assert (caught.value.errno, caught.value.path) == (errno.EIO, "f")


def test_no_descriptor_is_inherited_by_other_programs(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    before = set(os.listdir("/dev/fd"))
    handles = [storage.open("f", "x"), storage.lock("l"), storage.words("w", 1)]
    opened_now = {int(name) for name in set(os.listdir("/dev/fd")) - before}
    inheritable = []
    for descriptor in opened_now:
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone
            inheritable.append(os.get_inheritable(descriptor))
    assert len(inheritable) >= 3
    assert not any(inheritable)
    for handle in handles:
        handle.close()


@pytest.mark.parametrize("kind", ["file", "lock", "words"])
def test_a_forgotten_handle_warns_and_is_closed(tmp_path: Path, kind: str) -> None:
    storage = PosixStorage(tmp_path)

    def forget() -> None:
        if kind == "file":
            storage.open("f", "x")
        elif kind == "lock":
            storage.lock("l").try_acquire()
        else:
            storage.words("w", 1)
        gc.collect()

    with pytest.warns(ResourceWarning, match=f"unclosed {kind}"):
        forget()
    with contextlib.closing(storage.lock("l")) as lock:
        assert lock.try_acquire()


def start(storage: PosixStorage, script: str) -> subprocess.Popen[str]:
    """Run `script` in another process, with `storage` and `say` defined; returns after `say`."""
    prelude = """
import os, sys
from millstream.storage import WRITE_BYTES_MAX, PosixStorage
storage = PosixStorage(sys.argv[1])
def say(text):
    print(text, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", prelude + script, storage.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finish(child: subprocess.Popen[str]) -> str:
    try:
        output, _ = child.communicate("go\n", timeout=20)
    finally:
        child.kill()
    return output


@pytest.mark.crash
def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    child = start(
        storage,
        "lock = storage.lock('l'); assert lock.try_acquire(); say('ready'); sys.stdin.readline()",
    )
    with contextlib.closing(storage.lock("l")) as lock:
        assert not lock.try_acquire()
        child.send_signal(signal.SIGKILL)
        finish(child)
        assert lock.try_acquire()


@pytest.mark.crash
def test_a_forked_child_neither_frees_nor_keeps_the_parents_lock(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    script = """
lock = storage.lock('l')
assert lock.try_acquire()
if os.fork() == 0:
    try:
        lock.try_acquire()
    except Exception as error:
        reason = str(error)
    lock.release()
    lock.close()
    os.write(1, b'ready\\n')
    sys.stdin.readline()          # outlives its parent
    say(reason)
    os._exit(0)
os.read(0, 5)                     # first line: the parent ends without closing anything
os.kill(os.getpid(), 9)
"""
    child = start(storage, script)
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.closing(storage.lock("l")) as lock:
        assert not lock.try_acquire()
        child.kill()
        child.wait(10)
        assert lock.try_acquire()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write("go\n")
            child.stdin.close()
        assert "before the fork" in child.stdout.read()
    child.stdout.close()


def test_words_are_shared_between_processes(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    with contextlib.closing(storage.words("w", 3)) as words:
        words.view[0] = 41
        child = start(
            storage,
            """
words = storage.words('w', 3)
say('ready')
words.grow(1000)
words.view[1] = words.view[0] + 1
words.view[999] = 5
words.close()
""",
        )
        finish(child)
        assert words.view[1] == 42
        words.grow(1000)
        assert words.view[999] == 5


def test_words_stored_while_another_grows_the_file_are_kept(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    sizes = [2**exponent for exponent in range(14)]
    errors: list[str] = []

    def grow_and_mark(offset: int) -> None:
        with contextlib.closing(storage.words("w", 4)) as words:
            for size in sizes:
                words.grow(size)
                words.view[offset] = size
                if words.view[offset] != size:
                    errors.append(f"lost {size} at {offset}")

    threads = [threading.Thread(target=grow_and_mark, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors
    with contextlib.closing(storage.words("w", 4)) as words:
        assert list(words.view[:4]) == [sizes[-1]] * 4
        assert len(words.view) == sizes[-1]


def test_who_dies_while_being_rung_for_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the opening of its pipe and the write to it."""
    with contextlib.closing(PosixStorage(tmp_path)) as storage:
        bell = storage.bell("b")
        opened = os.open

        def open_and_die(path: str, flags: int) -> int:
            descriptor = opened(path, flags)
            bell.close()
            return descriptor

        monkeypatch.setattr(os, "open", open_and_die)
        storage.ring("b")
        storage.ring("b")  # now nobody is there from the beginning


def test_a_file_where_a_directory_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/store"):
        with pytest.raises(StorageError, match="a part of the path is a file") as error:
            PosixStorage(str(tmp_path / place))
        assert errno.ENOTDIR == error.value.errno
