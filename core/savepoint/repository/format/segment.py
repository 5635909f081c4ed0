"""A segment: a chunk whose content is lines of canonical JSON; and how this writer splits lines into segments.

``tree`` and ``entry`` define the lines of their layouts; this module handles lines of chunk references.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from savepoint.errors import IntegrityError, StateTooLarge
from savepoint.repository.format.canonical import decode, encode
from savepoint.repository.format.chunk import MAX_CHUNK_BYTES, ChunkRef, refs_of

REFS_PER_LINE = 256
LINES_PER_SEGMENT = 4
"""In a segment of a blob; one segment covers 1,024 chunks."""
REFS_PER_SEGMENT = REFS_PER_LINE * LINES_PER_SEGMENT

SEGMENT_ENTRIES = 1024
SEGMENT_BYTES = 512 << 10


def blob_segment(refs: Sequence[ChunkRef]) -> bytes:
    """Return the segment that lists these chunks, at most REFS_PER_SEGMENT."""
    lines = (refs[start : start + REFS_PER_LINE] for start in range(0, len(refs), REFS_PER_LINE))
    return b"".join(encode([ref.to_wire() for ref in line]) + b"\n" for line in lines)


def blob_refs(content: bytes, where: str) -> Iterator[ChunkRef]:
    """Yield the chunks that a blob's segment lists."""
    for value in lines_of(content, where):
        refs = refs_of(value, where)
        if not 1 <= len(refs) <= REFS_PER_LINE:
            raise IntegrityError(f"{where}: a line has {len(refs)} chunk references", where)
        yield from refs


def lines_of(content: bytes, where: str) -> Iterator[Any]:
    """Yield the values of a segment's lines."""
    if not content.endswith(b"\n"):
        raise IntegrityError(f"{where}: a segment does not end with a line", where)
    for line in content[:-1].split(b"\n"):
        yield decode(line, where)


def split_segments(lines: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """Yield segments of named lines.

    Besides the limits, only a line's own name decides whether it starts a segment, so a change stays in its segment.
    """
    pending: list[bytes] = []
    size = 0
    for name, line in lines:
        if pending and (len(pending) >= SEGMENT_ENTRIES or size >= SEGMENT_BYTES or _starts_segment(name)):
            yield _joined(pending)
            pending, size = [], 0
        pending.append(line)
        size += len(line)
    if pending:
        yield _joined(pending)


def _starts_segment(name: str) -> bool:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] == 0


def _joined(lines: list[bytes]) -> bytes:
    content = b"".join(lines)
    if len(content) > MAX_CHUNK_BYTES:
        raise StateTooLarge(f"one entry needs {len(lines[-1])} bytes of description, which does not fit a segment")
    return content
