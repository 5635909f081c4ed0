"""Sources of plain bytes to store: memory, or a range of an open file."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from savepoint.repository.format.entry import Encoding
from savepoint.storage.store import Buffer


class Source(Protocol):
    """Plain bytes to store. Read from several threads, never beyond ``length``."""

    @property
    def length(self) -> int:
        """The length in bytes, as known before reading."""
        ...

    def read_into(self, offset: int, target: memoryview) -> int:
        """Read into ``target``; return the count of bytes, which is less than ``len(target)`` only at the end."""
        ...


class MemorySource:
    """Bytes in memory. They must not change while they are stored."""

    def __init__(self, content: Buffer) -> None:
        self._view = memoryview(content).cast("B")

    @property
    def length(self) -> int:
        """The length in bytes."""
        return len(self._view)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Copy a range into ``target``."""
        piece = self._view[offset : offset + len(target)]
        target[: len(piece)] = piece
        return len(piece)


class FileSource:
    """A range of an open file; the caller closes its descriptor."""

    def __init__(self, descriptor: int, length: int, offset: int = 0, *, has_holes: bool = False) -> None:
        """``has_holes``: the file system's word is taken for where a file has no data; see ``is_hole``."""
        self._descriptor, self._length, self._offset, self._has_holes = descriptor, length, offset, has_holes

    @property
    def length(self) -> int:
        """The length of the range in bytes."""
        return self._length

    def is_hole(self, offset: int, length: int) -> bool:
        """Return whether the file has no data in this range, which then need not be read: it is all zeros."""
        if not self._has_holes:
            return False
        begin = self._offset + offset
        try:
            return os.lseek(self._descriptor, begin, os.SEEK_DATA) >= begin + length
        except OSError as error:
            return error.errno == errno.ENXIO and os.fstat(self._descriptor).st_size >= begin + length

    def read_into(self, offset: int, target: memoryview) -> int:
        """Read a range directly into ``target``."""
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], self._offset + offset + done)
            if count == 0:
                break
            done += count
        return done


@dataclass(frozen=True, slots=True)
class Entry:
    """A value to store."""

    name: str
    encoding: Encoding
    source: Source
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Canonical JSON values only, such as dtype and shape of a tensor."""
