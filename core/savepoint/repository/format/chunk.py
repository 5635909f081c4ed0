"""A chunk of plain content: its id, its reference, and the bounds of both. No I/O."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from savepoint.contract.vocabulary import ComponentKind
from savepoint.errors import IntegrityError
from savepoint.repository.format.canonical import is_hexadecimal, is_integer
from savepoint.repository.format.seal import TAG_BYTES

MAX_CHUNK_BYTES = 1 << 20
MAX_PACK_BYTES = 32 << 20
PACK_HEADER = b"SVPNTPK1"
OVERHEAD_BYTES = 1 + TAG_BYTES
"""Bytes by which a sealed chunk is longer than its payload: the codec byte and the tag."""

BLOCK_BYTES = 1 << 20
SMALL_BLOCK_BYTES = 256 << 10
SMALL_BLOCK_KINDS = frozenset({ComponentKind.MODEL_WEIGHTS, ComponentKind.OPTIMIZER_STATE, ComponentKind.KV_CACHE})

PACK_NAME = re.compile(r"(?:[1-9][0-9]{0,18})-[0-9a-f]{32}")


class ChunkRef(NamedTuple):
    """A reference to a stored chunk."""

    id: bytes
    """SHA-256 of the plain bytes."""
    pack: str
    """The pack's name, which is the last element of its key."""
    offset: int
    stored: int
    """Bytes in the pack, including the tag."""
    length: int
    """Bytes of plain content."""

    def to_wire(self) -> list[str | int]:
        """Return the array that the format writes."""
        return [self.id.hex(), self.pack, self.offset, self.stored, self.length]


def chunk_id(content: bytes | memoryview) -> bytes:
    """Return the SHA-256 of the content."""
    return hashlib.sha256(content).digest()


ZERO_CHUNKS = frozenset((size, chunk_id(bytes(size))) for size in (BLOCK_BYTES, SMALL_BLOCK_BYTES))
"""Length and id of whole blocks of zeros, of which sparse files consist: they need no room where they are restored."""


def is_zero(ref: ChunkRef) -> bool:
    """Return whether the chunk is a whole block of zeros."""
    return (ref.length, ref.id) in ZERO_CHUNKS


def block_bytes(kind: str) -> int:
    """Return the block size, in bytes, into which this writer splits content of this component kind."""
    return SMALL_BLOCK_BYTES if kind in SMALL_BLOCK_KINDS else BLOCK_BYTES


def content_digest(refs: Iterable[ChunkRef]) -> str:
    """Return the digest of the content that these chunks form, in order. It does not depend on where they are."""
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(ref.length.to_bytes(8, "big") + ref.id)
    return digest.hexdigest()


def ref_of(value: Any, where: str) -> ChunkRef:
    """Parse a reference and check every bound that does not require the size of its pack."""
    if not isinstance(value, list) or len(value) != 5:
        raise IntegrityError(f"{where}: a chunk reference is not an array of five", where)
    identity, pack, offset, stored, length = value
    if not (isinstance(identity, str) and is_hexadecimal(identity, 64)):
        raise IntegrityError(f"{where}: a chunk reference has no id", where)
    if not (isinstance(pack, str) and PACK_NAME.fullmatch(pack)):
        raise IntegrityError(f"{where}: a chunk reference names no pack", where)
    if not (is_integer(offset) and is_integer(stored) and is_integer(length)):
        raise IntegrityError(f"{where}: a chunk reference has other values than integers", where)
    if not (
        1 <= length <= MAX_CHUNK_BYTES
        and OVERHEAD_BYTES < stored <= MAX_CHUNK_BYTES + OVERHEAD_BYTES
        and len(PACK_HEADER) <= offset
        and offset + stored <= MAX_PACK_BYTES
    ):
        raise IntegrityError(f"{where}: a chunk reference is out of bounds", where)
    return ChunkRef(bytes.fromhex(identity), pack, offset, stored, length)


def refs_of(value: Any, where: str) -> tuple[ChunkRef, ...]:
    """Parse an array of references."""
    if not isinstance(value, list):
        raise IntegrityError(f"{where}: chunk references are not an array", where)
    return tuple(ref_of(each, where) for each in value)
