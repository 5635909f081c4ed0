"""One worker's way from plain bytes to a stored chunk: read, hash, known?, compress, seal, pack, put.

A lane has one read buffer, one buffer for what was compressed and one pack, all reused; it is used by one thread at a
time. Which lane stores what, and what becomes of the references, is for ``writer``.
"""

from collections.abc import Callable

from savepoint.errors import StateUnstable
from savepoint.repository.buffer import working_memory
from savepoint.repository.chunk import MAX_CHUNK_BYTES, ChunkRef, chunk_id
from savepoint.repository.compress import Compressor
from savepoint.repository.content import Source
from savepoint.repository.index import ChunkIndex
from savepoint.repository.keys import AgentKey
from savepoint.repository.manifest import Pack
from savepoint.repository.pack import RAW, ZSTD, PackWriter
from savepoint.repository.repository import pack_key
from savepoint.storage.store import BlobWriter


class Lane:
    """Stores chunks one after the other."""

    def __init__(self, writer: BlobWriter, key: AgentKey, index: ChunkIndex, new_name: Callable[[], str]) -> None:
        self._writer, self._key, self._index, self._new_name = writer, key, index, new_name
        self._plain = working_memory(1 + MAX_CHUNK_BYTES)
        self._packed = working_memory(1 + MAX_CHUNK_BYTES)
        self._plain[0], self._packed[0] = RAW, ZSTD
        self._compressor = Compressor()
        self._pack = PackWriter()
        self.written: list[Pack] = []
        """The packs this lane has put."""

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
        """Put the pack at hand, unless nothing needs it."""
        if self._pack.open and needed(self._pack.name):
            self._put()
        self._pack.drop()

    def _store_new(self, identity: bytes, content: memoryview) -> ChunkRef:
        frame = self._compressor.compress(content)
        if frame is None:
            plain = self._plain[: 1 + len(content)]
        else:
            self._packed[1 : 1 + len(frame)] = frame
            plain = self._packed[: 1 + len(frame)]
        if self._pack.open and not self._pack.fits(len(plain)):
            self._put()
        if not self._pack.open:
            self._pack.begin(self._new_name(), self._key)
        return self._index.add(self._pack.append(identity, plain, len(content)))

    def _put(self) -> None:
        pack = Pack(self._pack.name, self._pack.size)
        self._writer.put_new(pack_key(pack.name), self._pack.view())
        self._index.wrote(pack)
        self.written.append(pack)
        self._pack.drop()
