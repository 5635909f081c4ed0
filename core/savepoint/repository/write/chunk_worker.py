"""Turns plain bytes into one stored chunk after the other: read, hash, look up, compress, seal into a pack.

A worker reuses one buffer for plain and one for compressed bytes, and serves one thread at a time. ``worker_pool``
decides which worker stores what; ``pack_uploads`` stores full packs.
"""

from collections.abc import Callable

from savepoint.errors import StateUnstable
from savepoint.repository.buffer import working_memory
from savepoint.repository.format.chunk import MAX_CHUNK_BYTES, ZERO_CHUNKS, ChunkRef, chunk_id
from savepoint.repository.format.compress import Compressor
from savepoint.repository.format.pack import RAW, ZSTD, PackWriter
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.pack_uploads import PackUploads
from savepoint.repository.write.source import FileSource, Source

ZERO_IDS = dict(ZERO_CHUNKS)
"""Ids of whole blocks of zeros, by length."""


class ChunkWorker:
    """Stores chunks. Not thread-safe."""

    def __init__(self, uploads: PackUploads, index: ChunkIndex) -> None:
        self._uploads, self._index = uploads, index
        self._plain = working_memory(1 + MAX_CHUNK_BYTES)
        self._compressed = working_memory(1 + MAX_CHUNK_BYTES)
        self._plain[0], self._compressed[0] = RAW, ZSTD
        self._compressor = Compressor()
        self._pack: PackWriter | None = None

    def store(self, source: Source, offset: int, length: int, *, exact: bool) -> ChunkRef | None:
        """Store the chunk at ``offset`` and return its reference.

        If the source ends early, store a shorter chunk, or return None if nothing is left; with ``exact``, raise
        StateUnstable instead.
        """
        if length in ZERO_IDS and isinstance(source, FileSource) and source.is_hole(offset, length):
            found = self._index.find(ZERO_IDS[length])
            if found is not None:
                return found
        count = source.read_into(offset, self._plain[1 : 1 + length])
        if count < length and exact:
            raise StateUnstable(f"the content became shorter while it was read: {offset + count} bytes are left")
        if count == 0:
            return None
        content = self._plain[1 : 1 + count]
        identity = chunk_id(content)
        return self._index.find(identity) or self._store_new(identity, content)

    def flush(self, is_needed: Callable[[str], bool]) -> None:
        """Start to upload the current pack, or drop it if it is not needed."""
        pack, self._pack = self._pack, None
        if pack is not None:
            if is_needed(pack.name):
                self._uploads.put(pack)
            else:
                self._uploads.drop(pack)

    def _store_new(self, identity: bytes, content: memoryview) -> ChunkRef:
        frame = self._compressor.compress(content)
        if frame is None:
            plain = self._plain[: 1 + len(content)]
        else:
            self._compressed[1 : 1 + len(frame)] = frame
            plain = self._compressed[: 1 + len(frame)]
        pack = self._pack
        if pack is not None and not pack.fits(len(plain)):
            self._pack = None
            self._uploads.put(pack)
            pack = None
        if pack is None:
            pack = self._pack = self._uploads.take()
        return self._index.add(pack.append(identity, plain, len(content)))
