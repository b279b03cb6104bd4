"""A backup as one compressed file: a tar archive in one zstd frame, written and read as a stream.

The manifest is the first member, the catalog the second, then come the segments in the order of the
manifest. Whatever a hostile archive says, nothing is unpacked that is not in its manifest, nor more
of it than it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from .backup_manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest, ManifestFile
from .database_copy import Snapshot
from .errors import DataError
from .storage import CATALOG_NAME, File, Storage
from .storage_copy import remove_tree

if TYPE_CHECKING:
    import tarfile

    from zstandard import ZstdCompressionWriter, ZstdDecompressionReader

ARCHIVE_SUFFIXES: Final = (".tar.zst", ".tzst")
LEVEL: Final = 3
CATALOG_BYTES_MAX: Final = 1 << 40
WINDOW_BYTES_MAX: Final = 128 << 20
"""Memory that a frame may ask for to be decompressed."""
HEADER_BYTES_MAX: Final = 1 << 20
"""What may come before the content of a member."""
READ_BYTES: Final = 1 << 20


class _Sink:
    """The end of a stream in a file of a storage."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._position = 0

    def write(self, data: bytes) -> int:
        self._file.write([data], self._position)
        self._position += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class _Source:
    """A file of a storage as a stream of its first `size` bytes."""

    def __init__(self, file: File, size: int) -> None:
        self._file = file
        self._position = 0
        self._size = size

    def read(self, length: int = -1) -> bytes:
        left = self._size - self._position
        wanted = left if length < 0 else min(length, left)
        chunk = self._file.read(wanted, self._position) if wanted else b""
        self._position += len(chunk)
        return chunk


class _Content:
    """Bytes as a stream."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    def read(self, length: int = -1) -> bytes:
        length = len(self._rest) if length < 0 else length
        piece, self._rest = self._rest[:length], self._rest[length:]
        return bytes(piece)


class ArchiveWriter:
    """Writes a backup into one file. See `BackupTarget`.

    Args:
        storage: The directory it goes to.
        name: Its name there.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        import tarfile  # noqa: PLC0415 - 20 ms of import for those who never archive

        import zstandard  # noqa: PLC0415

        self._storage = storage
        self._catalog = f"{name}.catalog"
        self._file = storage.open(name, "x")
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        sink = _Sink(self._file)
        self._stream: ZstdCompressionWriter = compressor.stream_writer(sink, closefd=False)  # type: ignore[arg-type]
        self._tar = tarfile.open(fileobj=self._stream, mode="w|")  # noqa: SIM115 - kept open
        self._new_member = tarfile.TarInfo
        self._created_s = 0

    def begin(self, manifest: Manifest) -> None:
        """See `BackupTarget`."""
        self._created_s = manifest.created_ms // 1000
        content = manifest.to_json()
        member = self._member(MANIFEST, len(content))
        self._tar.addfile(member, _Content(content))

    def put_catalog(self, snapshot: Snapshot) -> None:
        """See `BackupTarget`. By way of a file beside the archive."""
        root = self._storage.catalog_filename().removesuffix(CATALOG_NAME)
        try:
            snapshot.copy_to(root + self._catalog)
            self._add(self._storage, self._catalog, CATALOG_NAME, None)
        finally:
            for companion in ("", "-journal", "-wal", "-shm"):
                remove_tree(self._storage, self._catalog + companion)

    def put_segment(self, source: Storage, path: str, file: ManifestFile, sealed: bool) -> bool:
        """See `BackupTarget`."""
        del sealed
        self._add(source, path, file.path, file.size_bytes)
        return False

    def _add(self, source: Storage, path: str, name: str, size: int | None) -> None:
        file = source.open(path, "r")
        try:
            size = file.size() if size is None else size
            self._tar.addfile(self._member(name, size), _Source(file, size))
        finally:
            file.close()

    def _member(self, name: str, size: int) -> tarfile.TarInfo:
        member = self._new_member(name)
        member.size, member.mtime, member.mode = size, self._created_s, 0o644
        return member

    def finish(self) -> None:
        """See `BackupTarget`."""
        self._tar.close()
        self._stream.close()  # type: ignore[no-untyped-call]
        self._file.sync()
        self._file.close()


class _Metered:
    """A stream that gives no more than it is told: what a header claims may be anything."""

    def __init__(self, stream: ZstdDecompressionReader) -> None:
        self._stream = stream
        self.left = 0

    def read(self, length: int = -1) -> bytes:
        if self.left <= 0:
            raise DataError("the archive is not one that a backup wrote: a header has no end")
        chunk: bytes = self._stream.read(min(length, READ_BYTES) if length > 0 else READ_BYTES)
        self.left -= len(chunk)
        return chunk


class ArchiveReader:
    """Reads a backup from one file. A context manager.

    Args:
        storage: The directory it is in.
        name: Its name there.

    Raises:
        DataError: It is not an archive, damaged, or not one that a backup wrote.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        import tarfile  # noqa: PLC0415 - 20 ms of import for those who never archive

        import zstandard  # noqa: PLC0415

        self._name = name
        self._errors = (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError)
        self._file = storage.open(name, "r")
        try:
            source = _Source(self._file, self._file.size())
            decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
            self._stream = _Metered(decompressor.stream_reader(source))  # type: ignore[arg-type]
            self._stream.left = HEADER_BYTES_MAX
            with self._damage():
                self._tar = tarfile.open(fileobj=self._stream, mode="r|")  # type: ignore[call-overload] # noqa: SIM115
            self.manifest = self._read_manifest()
        except BaseException:
            self._file.close()
            raise

    def _read_manifest(self) -> Manifest:
        member = self._next(MANIFEST, MANIFEST_BYTES_MAX)
        return Manifest.from_json(b"".join(self._pieces(member)))

    def read_catalog(self, write: Callable[[bytes], None]) -> None:
        """Hand the catalog to `write`, in pieces; the second thing to read."""
        for piece in self._pieces(self._next(CATALOG_NAME, CATALOG_BYTES_MAX)):
            write(piece)

    def read_segments(self) -> Iterator[tuple[ManifestFile, Iterator[bytes]]]:
        """The segments in the order of the manifest, each with its content in pieces."""
        for file in self.manifest.files:
            member = self._next(file.path, file.size_bytes)
            if member.size != file.size_bytes:
                raise self._unlike(f"{file.path} has {member.size} of {file.size_bytes} bytes")
            yield file, self._pieces(member)
        self._read_to_the_end()

    def _read_to_the_end(self) -> None:
        """Only there is the checksum of all that was read, the catalog and headers among it."""
        self._stream.left = HEADER_BYTES_MAX
        with self._damage():
            while self._stream.read():
                pass

    def _next(self, name: str, size_max: int) -> tarfile.TarInfo:
        self._stream.left = HEADER_BYTES_MAX
        with self._damage():
            member: tarfile.TarInfo | None = self._tar.next()
        if member is None or member.name != name or not member.isreg():
            raise self._unlike(f"{name} is missing")
        if not 0 <= member.size <= size_max:
            raise self._unlike(f"{name} has {member.size} bytes")
        return member

    def _pieces(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        left = member.size
        self._stream.left = left + HEADER_BYTES_MAX
        with self._damage():
            stream = self._tar.extractfile(member)
        assert stream is not None
        while left:
            with self._damage():
                piece = stream.read(min(left, READ_BYTES))
            if not piece:
                raise self._unlike(f"{member.name} is cut")
            left -= len(piece)
            yield piece

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise self._unlike(str(error)) from error

    def _unlike(self, why: str) -> DataError:
        return DataError(f"the archive is damaged, or no backup: {why}", path=self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
