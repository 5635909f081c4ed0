"""Stored content: the chunks of one file, value or blob."""

from collections.abc import Iterator
from dataclasses import dataclass

from savepoint.repository.format.chunk import ChunkRef


@dataclass(frozen=True, slots=True)
class Content:
    """Content that is in the store, or will be once the writer that made it finishes."""

    size: int
    """Bytes of plain content."""
    chunks: tuple[ChunkRef, ...] = ()
    """All its chunks, in order; empty if ``more`` is used."""
    more: tuple[ChunkRef, ...] = ()
    """The segments that list its chunks, if there are more than 256."""
    packs: frozenset[str] = frozenset()
    """Every pack that holds its chunks and segments."""
    ids: bytes = b""
    """The ids of the chunks that ``more`` lists, 32 bytes each."""

    def chunk_ids(self) -> Iterator[bytes]:
        """Yield the id of every chunk of content."""
        if self.more:
            yield from (self.ids[start : start + 32] for start in range(0, len(self.ids), 32))
        else:
            yield from (ref.id for ref in self.chunks)
