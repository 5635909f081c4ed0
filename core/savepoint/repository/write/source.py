"""Sources of plain bytes to store: memory, or a range of an open file."""

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

    def __init__(self, descriptor: int, length: int, offset: int = 0) -> None:
        self._descriptor, self._length, self._offset = descriptor, length, offset

    @property
    def length(self) -> int:
        """The length of the range in bytes."""
        return self._length

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
