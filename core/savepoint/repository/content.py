"""Stored content: the chunks of one file, value or blob, and where plain bytes come from before they are stored.

It stores nothing itself (``writer`` does) and fetches nothing (``reader`` does).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from savepoint.repository.chunk import ChunkRef
from savepoint.storage.store import Buffer


@dataclass(frozen=True, slots=True)
class Content:
    """Content that is in the store, or will be once the writer that made this finishes."""

    size: int
    """Plain bytes."""
    chunks: tuple[ChunkRef, ...] = ()
    """All its chunks, in order; empty when ``more`` is used."""
    more: tuple[ChunkRef, ...] = ()
    """For more than 256 chunks: the segments that list them."""
    packs: frozenset[str] = frozenset()
    """Every pack that chunks, segments and what they list are in."""
    ids: bytes = b""
    """The ids of the chunks that ``more`` lists, 32 bytes each."""

    def chunk_ids(self) -> Iterator[bytes]:
        """The id of every chunk of content."""
        if self.more:
            yield from (self.ids[start : start + 32] for start in range(0, len(self.ids), 32))
        else:
            yield from (ref.id for ref in self.chunks)


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
