"""Fetches many chunks with few reads: sorted by position, adjacent ones in one range, several threads, reused buffers.

It delivers verified bytes to the caller. It does not know what a chunk means and writes nothing.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from savepoint.errors import IntegrityError
from savepoint.repository.buffer import working_memory
from savepoint.repository.format.chunk import MAX_CHUNK_BYTES, OVERHEAD_BYTES, ChunkRef
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.format.pack import ChunkOpener
from savepoint.storage.store import BlobReader

RANGE_BYTES = 4 << 20
GAP_BYTES = 64 << 10

Purpose = TypeVar("Purpose")


@dataclass(frozen=True, slots=True)
class Wanted(Generic[Purpose]):
    """A chunk, and what the caller wants it for."""

    ref: ChunkRef
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class ReadRange(Generic[Purpose]):
    """A range of one pack that is read in one request."""

    pack: str
    start: int
    end: int
    wanted: tuple[Wanted[Purpose], ...]


class _Buffers:
    def __init__(self, key: AgentKey) -> None:
        self.sealed = working_memory(RANGE_BYTES + MAX_CHUNK_BYTES + OVERHEAD_BYTES)
        self.plain = working_memory(MAX_CHUNK_BYTES)
        self.opener = ChunkOpener(key)


class Fetcher:
    """Reads chunks of packs with known sizes, with threads of its own until it is closed."""

    def __init__(self, reader: BlobReader, key: AgentKey, packs: Mapping[str, int], *, threads: int = 2) -> None:
        self._reader, self._key, self._packs = reader, key, packs
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="savepoint-reader")

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def check(self, ref: ChunkRef) -> None:
        """Raise IntegrityError unless the reference lies within a pack that the manifest names."""
        if ref.offset + ref.stored > self._packs.get(ref.pack, 0):
            where = pack_key(ref.pack)
            raise IntegrityError(f"{where}: a chunk reference lies outside the packs of its manifest", where)

    def fetch_one(self, ref: ChunkRef) -> bytes:
        """Return one chunk, read in the caller's thread."""
        found: list[bytes] = []
        for read_range in read_ranges([Wanted(ref, None)]):
            self._fetch(read_range, lambda _, content: found.append(bytes(content)))
        return found[0]

    def fetch(self, wanted: Sequence[Wanted[Purpose]], deliver: Callable[[Purpose, memoryview], None]) -> None:
        """Pass every chunk to ``deliver``, from several threads and in no particular order.

        The bytes are valid only during the call. The first error ends the fetch: what was delivered is verified, the
        rest is missing.
        """
        futures = [self._pool.submit(self._fetch, read_range, deliver) for read_range in read_ranges(wanted)]
        try:
            for future in futures:
                future.result()
        finally:
            running = [future for future in futures if not future.cancel()]
            wait(running)

    def fetch_ordered(self, refs: Sequence[ChunkRef]) -> list[bytes]:
        """Return the content of these chunks, in order."""
        found: list[bytes] = [b""] * len(refs)

        def keep(number: int, content: memoryview) -> None:
            found[number] = bytes(content)

        self.fetch([Wanted(ref, number) for number, ref in enumerate(refs)], keep)
        return found

    def _fetch(self, read_range: ReadRange[Purpose], deliver: Callable[[Purpose, memoryview], None]) -> None:
        buffers = self._buffers()
        for each in read_range.wanted:
            self.check(each.ref)
        sealed = buffers.sealed[: read_range.end - read_range.start]
        self._reader.get_into(pack_key(read_range.pack), read_range.start, sealed)
        last: ChunkRef | None = None
        for each in read_range.wanted:
            ref = each.ref
            plain = buffers.plain[: ref.length]
            if ref != last:
                at = ref.offset - read_range.start
                buffers.opener.open_into(ref, sealed[at : at + ref.stored], plain)
                last = ref
            deliver(each.purpose, plain)

    def _buffers(self) -> _Buffers:
        buffers: _Buffers | None = getattr(self._local, "buffers", None)
        if buffers is None:
            buffers = self._local.buffers = _Buffers(self._key)
        return buffers


def read_ranges(wanted: Sequence[Wanted[Purpose]]) -> Iterator[ReadRange[Purpose]]:
    """Yield ranges that cover these chunks: a new one where a pack ends, a gap is wide, or the range is full."""
    pending: list[Wanted[Purpose]] = []
    end = 0
    for each in sorted(wanted, key=lambda one: (one.ref.pack, one.ref.offset)):
        ref = each.ref
        if pending:
            first = pending[0].ref
            is_far = ref.offset > end + GAP_BYTES or max(end, ref.offset + ref.stored) - first.offset > RANGE_BYTES
            if ref.pack != first.pack or is_far:
                yield ReadRange(first.pack, first.offset, end, tuple(pending))
                pending = []
        end = max(end, ref.offset + ref.stored) if pending else ref.offset + ref.stored
        pending.append(each)
    if pending:
        yield ReadRange(pending[0].ref.pack, pending[0].ref.offset, end, tuple(pending))
