"""One worker's way from plain bytes to a sealed chunk: read, hash, known?, compress, seal into a pack.

A lane has one read buffer and one buffer for what was compressed, both reused; it is used by one thread at a time.
Which lane stores what is for ``lanes``, what becomes of full packs for ``packing``.
"""

from collections.abc import Callable

from savepoint.errors import StateUnstable
from savepoint.repository.buffer import working_memory
from savepoint.repository.format.chunk import MAX_CHUNK_BYTES, ChunkRef, chunk_id
from savepoint.repository.format.compress import Compressor
from savepoint.repository.format.pack import RAW, ZSTD, PackWriter
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.pack_uploads import PackUploads
from savepoint.repository.write.source import Source


class ChunkWorker:
    """Stores chunks one after the other."""

    def __init__(self, packing: PackUploads, index: ChunkIndex) -> None:
        self._packing, self._index = packing, index
        self._plain = working_memory(1 + MAX_CHUNK_BYTES)
        self._packed = working_memory(1 + MAX_CHUNK_BYTES)
        self._plain[0], self._packed[0] = RAW, ZSTD
        self._compressor = Compressor()
        self._pack: PackWriter | None = None

    def store(self, source: Source, offset: int, length: int, *, exact: bool) -> ChunkRef | None:
        """Store the chunk at ``offset``; None, or a shorter one, if the source ended early and need not be exact."""
        count = source.read_into(offset, self._plain[1 : 1 + length])
        if count < length and exact:
            raise StateUnstable(f"the content became shorter while it was read: {offset + count} bytes are left")
        if count == 0:
            return None
        content = self._plain[1 : 1 + count]
        identity = chunk_id(content)
        return self._index.find(identity) or self._store_new(identity, content)

    def flush(self, needed: Callable[[str], bool]) -> None:
        """Begin to put the pack at hand, unless nothing needs it."""
        pack, self._pack = self._pack, None
        if pack is not None:
            if needed(pack.name):
                self._packing.put(pack)
            else:
                self._packing.drop(pack)

    def _store_new(self, identity: bytes, content: memoryview) -> ChunkRef:
        frame = self._compressor.compress(content)
        if frame is None:
            plain = self._plain[: 1 + len(content)]
        else:
            self._packed[1 : 1 + len(frame)] = frame
            plain = self._packed[: 1 + len(frame)]
        pack = self._pack
        if pack is not None and not pack.fits(len(plain)):
            self._pack = None
            self._packing.put(pack)
            pack = None
        if pack is None:
            pack = self._pack = self._packing.take()
        return self._index.add(pack.append(identity, plain, len(content)))
