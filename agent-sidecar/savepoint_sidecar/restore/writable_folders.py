"""Makes read-only folders writable while a restore changes what is in them, and gives them their modes back.

A folder without write permission, such as one of Go's module cache, keeps even its owner from changing its entries.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from savepoint_sidecar.files.walk import open_below

_OWNER: Final = stat.S_IRWXU
_MODE_BITS: Final = 0o7777


class WritableFolders:
    """Folders below one open folder that are writable until the end of the context. Follows no link."""

    def __init__(self, top: int) -> None:
        """``top`` stays open for as long as the context."""
        self._top = top
        self._modes: dict[str, tuple[int, int]] = {}
        """The inode and the earlier mode of each folder that was changed, by path."""

    def __enter__(self) -> "WritableFolders":
        return self

    def __exit__(self, *_: object) -> None:
        for path in sorted(self._modes, reverse=True):  # a folder comes after everything in it
            inode, mode = self._modes[path]
            with suppress(OSError):  # removed, or replaced by something else
                self._set_mode(path, inode, mode)

    def unlock(self, paths: Iterable[str]) -> None:
        """Make these folders writable for their owner, from the outermost. Folders of other users stay as they are."""
        for path in sorted(paths):
            with suppress(OSError):  # the change that needs the folder reports why it is not possible
                self._unlock(path)

    def _unlock(self, path: str) -> None:
        handle = self._open(path)
        try:
            status = os.fstat(handle)
            if status.st_mode & _OWNER == _OWNER:
                return
            mode = status.st_mode & _MODE_BITS
            _chmod(handle, mode | _OWNER)
            self._modes[path] = (status.st_ino, mode)
        finally:
            os.close(handle)

    def _set_mode(self, path: str, inode: int, mode: int) -> None:
        handle = self._open(path)
        try:
            if os.fstat(handle).st_ino == inode:
                _chmod(handle, mode)
        finally:
            os.close(handle)

    def _open(self, path: str) -> int:
        parent, _, name = path.rpartition("/")
        folder = open_below(self._top, parent, os.O_RDONLY | os.O_DIRECTORY) if parent else os.dup(self._top)
        try:
            return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)


def _chmod(handle: int, mode: int) -> None:
    """Set the mode through an O_PATH handle, which also opens a folder that may not be read."""
    os.chmod(f"/proc/self/fd/{handle}", mode)  # noqa: PTH101 - a handle, not a path
