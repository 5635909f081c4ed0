"""One file of the stage into which the final pass copies what changed, so that the agent waits for a copy, no upload.

Where the file system can share blocks the copy costs nothing. It knows nothing of roots and writers.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from savepoint.errors import StageFull

_FICLONERANGE: Final = 0x4020940D
_BLOCK: Final = 4096
_STEP: Final = 8 << 20
_CLONE_FROM: Final = 1 << 20
_RESERVE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """Where a file's content is in the pool."""

    offset: int
    length: int


class Spool:
    """A context manager: leaving it removes the file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "pool"
        self._end = 0
        self._clones = True
        self.descriptor = -1

    def __enter__(self) -> "Spool":
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self._path, flags, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self._path.unlink(missing_ok=True)

    def require(self, size: int) -> None:
        """StageFull unless so many bytes have room."""
        status = os.fstatvfs(self.descriptor)
        free = status.f_bavail * status.f_frsize
        if status.f_blocks and size + _RESERVE > free:
            raise _full(size, free)

    def take(self, descriptor: int, size: int, check: Callable[[], None]) -> Range:
        """Copy a file's content; its range is shorter if the file ends early. StageFull without room."""
        start = self._end
        try:
            done = self._clone(descriptor, size, start)
            while done < size:
                check()
                count = _copy(descriptor, self.descriptor, done, start + done, min(_STEP, size - done))
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _full(size, 0) from error
            raise
        self._end = -(-(start + done) // _BLOCK) * _BLOCK
        return Range(start, done)

    def _clone(self, descriptor: int, size: int, start: int) -> int:
        whole = size // _BLOCK * _BLOCK
        if not self._clones or size < _CLONE_FROM:
            return 0
        argument = b"".join(value.to_bytes(8, "little") for value in (descriptor, 0, whole, start))
        try:
            fcntl.ioctl(self.descriptor, _FICLONERANGE, argument)
        except OSError:
            self._clones = False  # another file system, or one that shares no blocks
            return 0
        return whole


def _copy(source: int, target: int, source_at: int, target_at: int, count: int) -> int:
    os.lseek(target, target_at, os.SEEK_SET)
    return os.sendfile(target, source, source_at, count)


def _full(size: int, free: int) -> StageFull:
    return StageFull(
        f"{size} bytes changed since the pre-copy, and the stage has room for {free}: the agent was resumed. "
        "Raise the size of the stage volume, or change less between safe points."
    )
