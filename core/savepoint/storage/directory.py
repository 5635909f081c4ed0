"""A store in a directory, for laptop mode and for tests.

An object appears whole or not at all: it is written to a temporary file, synced, and then linked under its name. The
store does not guard against another program that edits the directory; the format detects that.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from savepoint.errors import (
    DISK_FULL_ERRNOS,
    IntegrityError,
    NoSpace,
    ObjectExists,
    ObjectMissing,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
)
from savepoint.storage.store import Buffer, ObjectInfo, check_key, check_prefix, is_key, parts

INCOMING = ".incoming"
"""Folder of incomplete objects, below the root. No key can name it, and listings leave it out."""

_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class DirectoryStore:
    """Objects as files below a directory, as a FolderStore.

    Methods take, return and raise what the protocols in ``store`` document.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        """Use a directory.

        Args:
            path: The directory.
            create: Create it, readable by its owner alone, if it does not exist.

        Raises:
            StoreDenied, StoreMisconfigured, StoreUnavailable, NoSpace: The directory cannot be created.
        """
        self._root = Path(path).absolute()
        if create:
            with self._translate_errors(""):
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self._root)!r})"

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object; the file and its directory entry are synced to disk before this returns."""
        path = self._path(key)
        with self._translate_errors(key):
            self._require_root()
            if path.exists():
                raise ObjectExists(f"object {key} already exists in {self._root}")
            self._make_directories(path.parent)
            incoming = self._root / INCOMING
            incoming.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=incoming)
            try:
                try:
                    _write_all(handle, parts(data))
                    os.fsync(handle)
                finally:
                    os.close(handle)
                self._link(temporary, path, key)
            finally:
                with suppress(OSError):
                    Path(temporary).unlink()
            _sync_directory(path.parent)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object."""
        with self._translate_errors(key), self._open(key) as handle:
            size = os.fstat(handle).st_size
            if size > max_bytes:
                raise IntegrityError(f"object {key} holds {size} bytes, at most {max_bytes} are expected", key)
            content = bytearray(size)
            _read_all(handle, 0, memoryview(content), key)
            return bytes(content)

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range into ``target``."""
        with self._translate_errors(key), self._open(key) as handle:
            _read_all(handle, offset, target, key)

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and modification time."""
        path = self._path(key)
        with self._translate_errors(key):
            self._require_root()
            try:
                status = path.stat(follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return _info(key, status) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below the prefix, in the order of the directory walk."""
        check_prefix(prefix)
        with self._translate_errors(prefix):
            self._require_root()
            top = self._root / prefix.rpartition("/")[0]
            yield from self._walk(top, prefix)

    def folders(self, prefix: str) -> Sequence[str]:
        """List the folders directly below the prefix."""
        with self._translate_errors(prefix):
            self._require_root()
            try:
                found = [each.name for each in os.scandir(self._root / check_prefix(prefix)) if each.is_dir()]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in found if is_key(name) and (prefix or name != INCOMING))

    def delete(self, key: str) -> None:
        """Delete the object; its folders stay."""
        path = self._path(key)
        with self._translate_errors(key):
            self._require_root()
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                _sync_directory(path.parent)

    def _path(self, key: str) -> Path:
        if check_key(key).split("/", 1)[0] == INCOMING:
            raise ValueError(f"not an object key: {key!r}")
        return self._root / key

    def _require_root(self) -> None:
        if not self._root.is_dir():
            raise StoreMisconfigured(f"the store's directory {self._root} does not exist; create or mount it")

    @contextmanager
    def _open(self, key: str) -> Iterator[int]:
        path = self._path(key)
        self._require_root()
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"object {key} is not in {self._root}") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ObjectMissing(f"object {key} is not in {self._root}")
            yield handle
        finally:
            os.close(handle)

    def _make_directories(self, directory: Path) -> None:
        missing = []
        while not directory.is_dir():
            missing.append(directory)
            directory = directory.parent
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(each.parent)

    def _link(self, temporary: str, path: Path, key: str) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise ObjectExists(f"object {key} already exists in {self._root}") from error
        except OSError as error:
            if error.errno in _NO_LINK:
                raise StoreMisconfigured(
                    f"the file system of {self._root} has no hard links ({error.strerror}); "
                    "choose a directory on another file system"
                ) from error
            raise

    def _walk(self, top: Path, prefix: str) -> Iterator[ObjectInfo]:
        pending = [top]
        while pending:
            directory = pending.pop()
            try:
                entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                key = str(Path(entry.path).relative_to(self._root))
                if entry.is_dir(follow_symlinks=False):
                    if key != INCOMING and (key.startswith(prefix) or prefix.startswith(key)):
                        pending.append(Path(entry.path))
                elif key.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        yield _info(key, entry.stat(follow_symlinks=False))

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except SavepointError:
            raise
        except OSError as error:
            raise _translate(error, key, self._root) from error


def _translate(error: OSError, key: str, root: Path) -> SavepointError:
    what = f"object {key!r} in {root}: {error.strerror or error}"
    if error.errno in DISK_FULL_ERRNOS:
        return NoSpace(f"no space left for {what}; free some space, or use another store")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StoreDenied(f"not permitted: {what}; check the directory's owner and mode")
    if error.errno in {errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR}:
        return StoreMisconfigured(f"the directory cannot be used as a store: {what}")
    return StoreUnavailable(f"the disk failed: {what}")


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _write_all(handle: int, views: Sequence[memoryview]) -> None:
    for view in views:
        rest = view
        while len(rest):
            rest = rest[os.write(handle, rest) :]


def _read_all(handle: int, offset: int, target: memoryview, key: str) -> None:
    view, done = target.cast("B"), 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if count == 0:
            raise IntegrityError(
                f"object {key} ends at byte {offset + done}, {len(view) - done} more are expected", key
            )
        done += count


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
