"""The directory a tree is restored into: every step from its descriptor, no symbolic link followed, nothing replaced.

It knows paths and descriptors, no chunks. The only module of the repository that touches a file system.
"""

import ctypes
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from savepoint.errors import (
    DISK_FULL_ERRNOS,
    NoSpace,
    RunAsUserRequired,
    SavepointError,
    TargetNotEmpty,
    TargetUnusable,
)
from savepoint.repository.format.tree import MODE_BITS, path_bytes

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_DIRECTORIES = 32


class Target:
    """Paths below one open directory. Used by one thread; each worker opens its own from the same root."""

    def __init__(self, root: int) -> None:
        """``root`` is the descriptor of the directory; it stays the caller's."""
        self._root = root
        self._directories: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> "Target":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directories that were kept open."""
        while self._directories:
            os.close(self._directories.popitem()[1])

    def make_directory(self, path: str) -> None:
        """Make a directory for us alone; one that is there already, and is no link, is fine."""
        with translated(path):
            parent, name = self._place(path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                self.directory(path)

    def create(self, path: str) -> int:
        """Open a new file for writing; the descriptor is the caller's. TargetNotEmpty if anything has the name."""
        with translated(path):
            parent, name = self._place(path)
            return os.open(name, _NEW_FILE, 0o600, dir_fd=parent)

    def make_symlink(self, path: str, target: str, mtime_ns: int) -> None:
        """Make a symbolic link, verbatim."""
        with translated(path):
            parent, name = self._place(path)
            os.symlink(path_bytes(target), name, dir_fd=parent)
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def finish_directory(self, path: str, mode: int, mtime_ns: int) -> None:
        """Give a directory its mode and time."""
        with translated(path):
            descriptor = self.directory(path)
            finish(descriptor, mode, mtime_ns)

    def directory(self, path: str) -> int:
        """The descriptor of a directory, found element by element; it is valid until a few others were asked for."""
        missing: list[str] = []
        while path and path not in self._directories:
            path, _, name = path.rpartition("/")
            missing.append(name)
        descriptor = self._directories[path] if path else self._root
        if path:
            self._directories.move_to_end(path)
        for name in reversed(missing):
            descriptor = os.open(path_bytes(name), _DIRECTORY, dir_fd=descriptor)
            path = f"{path}/{name}" if path else name
            self._directories[path] = descriptor
            if len(self._directories) > _KEPT_DIRECTORIES:
                os.close(self._directories.popitem(last=False)[1])
        return descriptor

    def _place(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self.directory(parent), path_bytes(name)


def finish(descriptor: int, mode: int, mtime_ns: int) -> None:
    """Give an open file or directory its mode and time."""
    os.fchmod(descriptor, mode & MODE_BITS)
    os.utime(descriptor, ns=(mtime_ns, mtime_ns))


def write_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Write all of it."""
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)


def sync_file_system(descriptor: int) -> None:
    """Make everything written to the file system of this descriptor durable."""
    with translated("."):
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn what the file system says into our errors, with the path."""
    try:
        yield
    except SavepointError:
        raise
    except OSError as error:
        raise _translate(error, path) from error


def _translate(error: OSError, path: str) -> SavepointError:
    what = f"{path!r} cannot be restored: {error.strerror or error}"
    if error.errno in DISK_FULL_ERRNOS:
        return NoSpace(f"{what}; give the volume more space")
    if error.errno in {errno.EEXIST, errno.ENOTDIR, errno.ELOOP}:
        return TargetNotEmpty(f"{what}: something else has this name; empty the target first")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return RunAsUserRequired(f"{what}; it must be written as the user who owns the target, not as {os.geteuid()}")
    return TargetUnusable(f"{what}; the target must be a writable volume with a POSIX file system")
