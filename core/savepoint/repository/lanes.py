"""All lanes of a writer together: how content is cut into chunks and spread over a few threads.

It knows sources, blocks and stripes; components and manifests are for ``writer``, one chunk's way is for ``lane``.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from queue import LifoQueue
from typing import TypeVar

from savepoint.errors import DeadlineExceeded
from savepoint.repository.chunk import ChunkRef, block_bytes
from savepoint.repository.content import Content, MemorySource, Source
from savepoint.repository.lane import Lane
from savepoint.repository.manifest import Pack
from savepoint.repository.segment import REFS_PER_LINE, REFS_PER_SEGMENT, blob_segment

Item = TypeVar("Item")
Result = TypeVar("Result")

STRIPE_CHUNKS = 16
_AHEAD = 64
_ABORTED = "the checkpoint was aborted while its content was stored"


class Lanes:
    """As many lanes as threads. Every method may be called from any thread, those of ``map`` included."""

    def __init__(self, make: Callable[[], Lane], threads: int, progress: Callable[[int], None] | None) -> None:
        """``progress`` is told the plain bytes done so far."""
        self._lanes = [make() for _ in range(threads)]
        self._free: LifoQueue[Lane | None] = LifoQueue()
        for lane in self._lanes:
            self._free.put(lane)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="savepoint-writer")
        self._progress, self._done, self._lock = progress, 0, threading.Lock()
        self._stopped = False

    def store(self, source: Source, kind: str, *, exact: bool) -> Content:
        """Store a source; StateUnstable if it ends early and ``exact`` is asked."""
        block, length = block_bytes(kind), source.length
        if length <= block * REFS_PER_LINE:
            refs = tuple(self.store_blocks(source, 0, length, block, exact=exact))
            return Content(sum(ref.length for ref in refs), refs, packs=frozenset(ref.pack for ref in refs))
        size, more, ids, packs = 0, [], bytearray(), set[str]()
        window = block * REFS_PER_SEGMENT
        for start in range(0, length, window):
            expected = min(length - start, window)
            listed = self.store_blocks(source, start, expected, block, exact=exact)
            if listed:
                more.append(self.store_chunk(blob_segment(listed)))
            count = sum(ref.length for ref in listed)
            size += count
            ids += b"".join(ref.id for ref in listed)
            packs.update(ref.pack for ref in listed)
            if count < expected:
                break
        packs.update(ref.pack for ref in more)
        return Content(size, (), tuple(more), frozenset(packs), bytes(ids))

    def store_blocks(self, source: Source, start: int, length: int, block: int, *, exact: bool) -> list[ChunkRef]:
        """The chunks of a range; idle threads of the pool help with a long one, the caller's does what they do not."""
        count = -(-length // block)
        refs: list[ChunkRef | None] = [None] * count
        stripes = iter(range(0, count, STRIPE_CHUNKS))
        failed = False

        def work() -> None:
            nonlocal failed
            try:
                while not failed:
                    with self._lock:
                        first = next(stripes, None)
                    if first is None:
                        return
                    with self._lane() as lane:
                        for number in range(first, min(first + STRIPE_CHUNKS, count)):
                            at = number * block
                            refs[number] = self._store_at(lane, source, start + at, min(block, length - at), exact)
            except BaseException:
                failed = True
                raise

        helpers = [self._submit(work) for _ in range(min(len(self._lanes), -(-count // STRIPE_CHUNKS)) - 1)]
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
        with self._lane() as lane:
            ref = lane.store(MemorySource(content), 0, len(content), exact=True)
        assert ref is not None
        return ref

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's answers in order, worked out by the writer's threads, a bounded number ahead."""
        waiting: deque[Future[Result]] = deque()
        source = iter(items)
        try:
            waiting.extend(self._submit(partial(function, item)) for item in islice(source, _AHEAD))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(self._submit(partial(function, item)) for item in islice(source, 1))
        finally:
            for future in waiting:
                future.cancel()

    def flush(self, needed: Callable[[str], bool]) -> tuple[Pack, ...]:
        """Put the packs at hand that are needed; every pack that was put since the beginning."""
        list(self._pool.map(lambda lane: lane.flush(needed), self._lanes))
        return tuple(sorted((pack for lane in self._lanes for pack in lane.written), key=lambda pack: pack.name))

    def close(self) -> None:
        """End the threads, at their next chunk if they still store something, and let the buffers go."""
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._lanes.clear()
        while not self._free.empty():
            self._free.get_nowait()
        self._free.put(None)

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        if self._stopped:
            raise DeadlineExceeded(_ABORTED)
        return self._pool.submit(work)

    def _store_at(self, lane: Lane, source: Source, offset: int, length: int, exact: bool) -> ChunkRef | None:
        if self._stopped:
            raise DeadlineExceeded(_ABORTED)
        ref = lane.store(source, offset, length, exact=exact)
        if self._progress is not None and ref is not None:
            with self._lock:
                self._done += ref.length
                done = self._done
            self._progress(done)
        return ref

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._free.get()
        if lane is None:
            self._free.put(None)  # for whoever waits beside us
            raise DeadlineExceeded(_ABORTED)
        try:
            yield lane
        finally:
            self._free.put(lane)


def _contiguous(refs: Sequence[ChunkRef | None], block: int) -> list[ChunkRef]:
    """The chunks up to the first that is short: what comes after the end of a shrinking file is not its content."""
    result = []
    for ref in refs:
        if ref is None:
            break
        result.append(ref)
        if ref.length < block:
            break
    return result
