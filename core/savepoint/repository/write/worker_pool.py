"""All chunk workers of one writer: splits content into chunks and spreads them over a few threads.

It handles sources, blocks and stripes; ``writer`` handles components and manifests, ``chunk_worker`` single chunks.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

from savepoint.errors import DeadlineExceeded
from savepoint.repository.format.chunk import ChunkRef, block_bytes, is_zero
from savepoint.repository.format.content import Content
from savepoint.repository.format.manifest import Pack
from savepoint.repository.format.segment import REFS_PER_LINE, REFS_PER_SEGMENT, blob_segment
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.chunk_worker import ChunkWorker
from savepoint.repository.write.pack_uploads import ABORTED, PackUploads
from savepoint.repository.write.source import FileSource, MemorySource, Source

Item = TypeVar("Item")
Result = TypeVar("Result")

STRIPE_BYTES = 1 << 20
WINDOW_ITEMS = 64
PARALLEL_BYTES = 32 << 10
"""With smaller items threads cost more than they gain: every system call releases Python's lock."""


class WorkerPool:
    """One worker per thread. Every method may be called from any thread, including those of ``map``."""

    def __init__(
        self, uploads: PackUploads, index: ChunkIndex, threads: int, progress: Callable[[int], None] | None
    ) -> None:
        """``progress`` is called with the number of plain bytes stored so far, from several threads."""
        self._uploads = uploads
        self._workers = [ChunkWorker(uploads, index) for _ in range(threads)]
        self._free = list(self._workers)
        self._freed = threading.Condition()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="savepoint-writer")
        self._progress, self._done, self._lock = progress, 0, threading.Lock()
        self._stopped = False

    def store(self, source: Source, kind: str, *, exact: bool) -> Content:
        """Store a whole source; with ``exact``, raise StateUnstable if it ends early."""
        block, length = block_bytes(kind), source.length
        if length <= block * REFS_PER_LINE:
            refs = tuple(self.store_blocks(source, 0, length, block, exact=exact))
            return Content(sum(ref.length for ref in refs), refs, packs=frozenset(ref.pack for ref in refs))
        size, more, ids, packs = 0, [], bytearray(), set[str]()
        window = block * REFS_PER_SEGMENT
        hole: tuple[ChunkRef, bytes] | None = None  # the segment that lists a window without data, and its chunks' ids
        for start in range(0, length, window):
            expected = min(length - start, window)
            is_hole = expected == window and isinstance(source, FileSource) and source.is_hole(start, window)
            if is_hole and hole is not None:
                more.append(hole[0])
                ids += hole[1]
                size += window
                self._add_done(window)
                continue
            listed = self.store_blocks(source, start, expected, block, exact=exact)
            if listed:
                more.append(self.store_chunk(blob_segment(listed)))
            if is_hole and all(map(is_zero, listed)) and len(listed) == REFS_PER_SEGMENT:
                hole = more[-1], b"".join(ref.id for ref in listed)
            count = sum(ref.length for ref in listed)
            size += count
            ids += b"".join(ref.id for ref in listed)
            packs.update(ref.pack for ref in listed)
            if count < expected:
                break
        packs.update(ref.pack for ref in more)
        return Content(size, (), tuple(more), frozenset(packs), bytes(ids))

    def store_blocks(self, source: Source, start: int, length: int, block: int, *, exact: bool) -> list[ChunkRef]:
        """Store a range and return its chunks. Idle threads help with a long range; the caller's does the rest."""
        if length <= block:
            with self._worker() as worker:
                ref = self._store_at(worker, source, start, length, exact) if length else None
            return [] if ref is None else [ref]
        count, stripe = -(-length // block), max(1, STRIPE_BYTES // block)
        refs: list[ChunkRef | None] = [None] * count
        stripes = iter(range(0, count, stripe))
        failed = False

        def work() -> None:
            nonlocal failed
            try:
                while not failed:
                    with self._lock:
                        first = next(stripes, None)
                    if first is None:
                        return
                    with self._worker() as worker:
                        for number in range(first, min(first + stripe, count)):
                            at = number * block
                            refs[number] = self._store_at(worker, source, start + at, min(block, length - at), exact)
            except BaseException:
                failed = True
                raise

        helpers = [self._submit(work) for _ in range(min(len(self._workers), -(-count // stripe)) - 1)]
        try:
            work()
        finally:
            running = [helper for helper in helpers if not helper.cancel()]
            for helper in running:
                helper.exception()
        for helper in running:
            helper.result()
        return _contiguous(refs, block)

    def store_chunk(self, content: bytes) -> ChunkRef:
        """Store bytes as one chunk."""
        with self._worker() as worker:
            ref = worker.store(MemorySource(content), 0, len(content), exact=True)
        assert ref is not None
        return ref

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function's results in order. As long as items are large, the writer's threads compute them."""
        source = iter(items)
        parallel = False
        while window := list(islice(source, WINDOW_ITEMS)):
            if self._stopped:
                raise DeadlineExceeded(ABORTED)
            before = self._done
            if parallel:
                yield from self._in_threads(function, window)
            else:
                yield from (function(item) for item in window)
            parallel = self._done - before >= PARALLEL_BYTES * len(window)

    def flush(self, is_needed: Callable[[str], bool]) -> tuple[Pack, ...]:
        """Upload the unfinished packs that are needed; return every pack uploaded since the start."""
        for worker in self._workers:
            worker.flush(is_needed)
        return self._uploads.wait()

    def close(self) -> None:
        """Stop the threads, at their next chunk if they are still storing, and free the buffers."""
        self._stopped = True
        self._uploads.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._workers.clear()
        with self._freed:
            self._free.clear()
            self._freed.notify_all()

    def _in_threads(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        futures = [self._submit(partial(function, item)) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        try:
            return self._threads.submit(work)
        except RuntimeError as error:
            raise DeadlineExceeded(ABORTED) from error

    def _store_at(self, worker: ChunkWorker, source: Source, offset: int, length: int, exact: bool) -> ChunkRef | None:
        ref = worker.store(source, offset, length, exact=exact)
        if ref is not None:
            self._add_done(ref.length)
        return ref

    def _add_done(self, count: int) -> None:
        with self._lock:
            self._done += count
            done = self._done
        if self._progress is not None:
            self._progress(done)

    @contextmanager
    def _worker(self) -> Iterator[ChunkWorker]:
        with self._freed:
            while not self._free:
                if self._stopped:
                    raise DeadlineExceeded(ABORTED)
                self._freed.wait()
            worker = self._free.pop()  # the most recently used one, so that a small checkpoint fills one pack
        try:
            yield worker
        finally:
            with self._freed:
                if not self._stopped:
                    self._free.append(worker)
                self._freed.notify()


def _contiguous(refs: Sequence[ChunkRef | None], block: int) -> list[ChunkRef]:
    """Return the chunks up to the first short one: what follows the end of a shrinking file is not its content."""
    result = []
    for ref in refs:
        if ref is None:
            break
        result.append(ref)
        if ref.length < block:
            break
    return result
