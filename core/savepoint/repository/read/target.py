"""The directory a tree is restored into. Every path is opened relative to it; nothing follows links or replaces files.

It knows paths and descriptors, not chunks. The only module of the repository that touches a file system.
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
from savepoint.repository.format.tree import MODE_BITS, Owner, path_bytes
from savepoint.repository.read.ownership import give_file, give_link

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_DIRECTORIES = 32
_PAGE_BYTES = 4096
_ZERO_PAGE = bytes(_PAGE_BYTES)


class Target:
    """Paths below one open directory. Not thread-safe; each worker opens its own from the same root."""

    def __init__(self, root: int) -> None:
        """Use an open directory; the caller keeps and closes its descriptor."""
        self._root = root
        self._directories: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> "Target":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the cached directories."""
        while self._directories:
            os.close(self._directories.popitem()[1])

    def make_directory(self, path: str) -> None:
        """Create a directory with mode 0700; an existing one that is not a link is accepted."""
        with translate_errors(path):
            parent, name = self._locate(path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                self.directory(path)

    def create(self, path: str) -> int:
        """Create a file and return its descriptor, to be closed by the caller. TargetNotEmpty if the name is taken."""
        with translate_errors(path):
            parent, name = self._locate(path)
            return os.open(name, _NEW_FILE, 0o600, dir_fd=parent)

    def make_symlink(self, path: str, target: str, mtime_ns: int, owner: Owner | None = None) -> None:
        """Create a symbolic link with this target, verbatim."""
        with translate_errors(path):
            parent, name = self._locate(path)
            os.symlink(path_bytes(target), name, dir_fd=parent)
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
            give_link(parent, name, owner)

    def finish_directory(self, path: str, mode: int, mtime_ns: int, owner: Owner | None = None) -> None:
        """Set a directory's owner, mode and time."""
        with translate_errors(path):
            descriptor = self.directory(path)
            set_stat(descriptor, mode, mtime_ns, owner)

    def directory(self, path: str) -> int:
        """Open a directory element by element. The descriptor is valid until a few other directories were opened."""
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

    def _locate(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self.directory(parent), path_bytes(name)


def set_stat(descriptor: int, mode: int, mtime_ns: int, owner: Owner | None = None) -> None:
    """Set the mode and time of an open file or directory, and its owner as far as this process may."""
    os.fchmod(descriptor, mode & MODE_BITS)
    os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    give_file(descriptor, owner)  # last: what belongs to another user can be changed no more


def write_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Write the whole content at the offset."""
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)


def write_data_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Write the content at the offset, except for pages of zeros: in a new file, they stay holes.

    The caller sets the size of the file.
    """
    begin: int | None = None
    for at in range(0, len(content), _PAGE_BYTES):
        is_hole = content[at : at + _PAGE_BYTES].tobytes() == _ZERO_PAGE
        if is_hole and begin is not None:
            write_at(descriptor, offset + begin, content[begin:at])
            begin = None
        elif not is_hole and begin is None:
            begin = at
    if begin is not None:
        write_at(descriptor, offset + begin, content[begin:])


def sync_file_system(descriptor: int) -> None:
    """Make everything written to the file system of this descriptor durable."""
    with translate_errors("."):
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Translate OSError into Savepoint's errors, with the path."""
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
        return TargetNotEmpty(f"{what}: another file has this name; empty the target first")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return RunAsUserRequired(f"{what}; write it as the user who owns the target, not as uid {os.geteuid()}")
    return TargetUnusable(f"{what}; the target must be a writable volume with a POSIX file system")
