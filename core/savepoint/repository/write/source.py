"""Where plain bytes come from before they are stored: memory, or a range of an open file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from savepoint.repository.format.entry import Encoding
from savepoint.storage.store import Buffer


class Source(Protocol):
    """Plain bytes to be stored. Read from several threads, never past ``length``."""

    @property
    def length(self) -> int:
        """Bytes, as far as known before reading."""
        ...

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill ``target`` from ``offset``; fewer bytes than asked mean that the source ends there."""
        ...


class MemorySource:
    """Bytes in memory, which must not change while they are stored."""

    def __init__(self, content: Buffer) -> None:
        self._view = memoryview(content).cast("B")

    @property
    def length(self) -> int:
        """Bytes."""
        return len(self._view)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Copy a range."""
        piece = self._view[offset : offset + len(target)]
        target[: len(piece)] = piece
        return len(piece)


class FileSource:
    """A range of an open file; the descriptor stays the caller's."""

    def __init__(self, descriptor: int, length: int, offset: int = 0) -> None:
        self._descriptor, self._length, self._offset = descriptor, length, offset

    @property
    def length(self) -> int:
        """Bytes of the range."""
        return self._length

    def read_into(self, offset: int, target: memoryview) -> int:
        """Read a range straight into the target."""
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], self._offset + offset + done)
            if count == 0:
                break
            done += count
        return done


@dataclass(frozen=True, slots=True)
class Entry:
    """A value to be stored."""

    name: str
    encoding: Encoding
    source: Source
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Canonical JSON only: dtype and shape of a tensor."""
