"""Stored content: the chunks of one file, value or blob."""

from collections.abc import Iterator
from dataclasses import dataclass

from savepoint.repository.format.chunk import ChunkRef


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
