"""A spool file in the stage, into which files are copied during a pause: the agent waits for a copy, not an upload.

Where the file system can share blocks, the copy costs nothing. The spool knows neither roots nor writers.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from savepoint.contract.stage_layout import SPOOL_NAME
from savepoint.errors import DISK_FULL_ERRNOS, StageFull

_FICLONERANGE: Final = 0x4020940D
_BLOCK_BYTES: Final = 4096
_COPY_BYTES: Final = 8 << 20
_CLONE_MIN_BYTES: Final = 1 << 20
_RESERVE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """Position of a file's content in the spool, in bytes."""

    offset: int
    length: int


class Spool:
    """A context manager that creates the spool file and removes it on exit."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SPOOL_NAME
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

    def require_space(self, size: int) -> None:
        """Raise StageFull unless ``size`` bytes fit."""
        status = os.fstatvfs(self.descriptor)
        free = status.f_bavail * status.f_frsize
        if status.f_blocks and size + _RESERVE_BYTES > free:
            raise _full(size, free)

    def append(self, descriptor: int, size: int, check: Callable[[], None], *, has_holes: bool = False) -> Range:
        """Copy a file's content; the range is shorter if the file ends early. StageFull if it does not fit.

        ``has_holes``: the file system's word is taken for where the file has no data.
        """
        start = self._end
        try:
            done = self._clone(descriptor, size, start)
            while done < size:
                check()
                hole = _hole_at(descriptor, done, size) if has_holes and size >= _CLONE_MIN_BYTES else 0
                if hole:
                    done += hole
                    os.ftruncate(self.descriptor, start + done)
                    continue
                count = _copy(descriptor, self.descriptor, done, start + done, min(_COPY_BYTES, size - done))
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise _full(size, 0) from error
            raise
        self._end = -(-(start + done) // _BLOCK_BYTES) * _BLOCK_BYTES
        return Range(start, done)

    def _clone(self, descriptor: int, size: int, start: int) -> int:
        whole = size // _BLOCK_BYTES * _BLOCK_BYTES
        if not self._clones or size < _CLONE_MIN_BYTES:
            return 0
        argument = b"".join(value.to_bytes(8, "little") for value in (descriptor, 0, whole, start))
        try:
            fcntl.ioctl(self.descriptor, _FICLONERANGE, argument)
        except OSError:
            self._clones = False  # the file is on another file system, or this one cannot share blocks
            return 0
        return whole


def _hole_at(descriptor: int, offset: int, size: int) -> int:
    """Return the length of the hole that begins here, as far as the file reaches; 0 if there is data."""
    try:
        return min(os.lseek(descriptor, offset, os.SEEK_DATA), size) - offset
    except OSError as error:
        if error.errno != errno.ENXIO:
            return 0
        return max(0, min(os.fstat(descriptor).st_size, size) - offset)


def _copy(source: int, target: int, source_at: int, target_at: int, count: int) -> int:
    os.lseek(target, target_at, os.SEEK_SET)
    return os.sendfile(target, source, source_at, count)


def _full(size: int, free: int) -> StageFull:
    return StageFull(
        f"{size} bytes changed since the pre-copy, but the stage has room for {free}; the agent was resumed. "
        "Raise the size of the stage volume, or change less between safe points."
    )
