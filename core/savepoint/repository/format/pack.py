"""A pack: sealed chunks back to back in one buffer; and how to open one of them again.

This module neither stores nor fetches packs, and does not decide which chunk goes into which pack.
"""

from savepoint.errors import IntegrityError
from savepoint.repository.buffer import working_memory
from savepoint.repository.format.chunk import MAX_PACK_BYTES, PACK_HEADER, ChunkRef, chunk_id
from savepoint.repository.format.compress import Decompressor
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.seal import NONCE_BYTES, TAG_BYTES, Seal

RAW = 0
ZSTD = 1


class PackWriter:
    """Fills one buffer with pack after pack. Not thread-safe."""

    def __init__(self, capacity: int = MAX_PACK_BYTES) -> None:
        self._buffer = working_memory(capacity)
        self._seal: Seal | None = None
        self._filled = 0
        self.name = ""

    def begin(self, name: str, key: AgentKey) -> None:
        """Start an empty pack with this name."""
        self.name, self._seal = name, key.pack_seal(name)
        self._buffer[: len(PACK_HEADER)] = PACK_HEADER
        self._filled = len(PACK_HEADER)

    @property
    def open(self) -> bool:
        """True if a pack was begun and not dropped."""
        return self._seal is not None

    @property
    def size(self) -> int:
        """Bytes of the pack so far."""
        return self._filled

    def fits(self, plain: int) -> bool:
        """Return whether the codec byte and payload, ``plain`` bytes together, still fit."""
        return self._filled + plain + TAG_BYTES <= len(self._buffer)

    def append(self, identity: bytes, plain: memoryview, length: int) -> ChunkRef:
        """Seal the codec byte and payload (``plain``) of a chunk of ``length`` bytes and return its reference."""
        assert self._seal is not None
        offset, stored = self._filled, len(plain) + TAG_BYTES
        self._seal.seal_into(nonce(offset), plain, identity, self._buffer[offset : offset + stored])
        self._filled += stored
        return ChunkRef(identity, self.name, offset, stored, length)

    def view(self) -> memoryview:
        """Return the pack's bytes; valid until the next ``begin``."""
        return self._buffer[: self._filled]

    def drop(self) -> None:
        """Discard the pack; the buffer stays."""
        self._seal, self._filled, self.name = None, 0, ""


class ChunkOpener:
    """Opens sealed chunks into the caller's buffers. Not thread-safe; use one per thread."""

    def __init__(self, key: AgentKey) -> None:
        self._key = key
        self._seals: dict[str, Seal] = {}
        self._decompressor = Decompressor()
        self._plain = bytearray()

    def open_into(self, ref: ChunkRef, sealed: memoryview, target: memoryview) -> None:
        """Fill ``target``, which is exactly as long as the chunk; IntegrityError naming the pack if it is damaged."""
        where = f"packs/{ref.pack}"
        size = ref.stored - TAG_BYTES
        if len(self._plain) < size:
            self._plain = bytearray(size)
        with memoryview(self._plain) as whole:
            plain = whole[:size]
            self._seal(ref.pack).open_into(nonce(ref.offset), sealed, ref.id, plain, where)
            payload = plain[1:]
            if plain[0] == RAW:
                if len(payload) != ref.length:
                    raise IntegrityError(f"{where}: the chunk does not have {ref.length} bytes", where)
                target[:] = payload
            elif plain[0] == ZSTD:
                self._decompressor.expand(payload, target, where)
            else:
                raise IntegrityError(f"{where}: the chunk has an unknown codec", where)
        if chunk_id(target) != ref.id:
            raise IntegrityError(f"{where}: the chunk's content does not match its id", where)

    def _seal(self, pack: str) -> Seal:
        seal = self._seals.get(pack)
        if seal is None:
            if len(self._seals) >= 256:
                self._seals.clear()
            seal = self._seals[pack] = self._key.pack_seal(pack)
        return seal


def nonce(offset: int) -> bytes:
    """Return the nonce of the chunk at this offset."""
    return offset.to_bytes(NONCE_BYTES, "big")
