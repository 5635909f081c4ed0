"""Keys that need a look, each at most once at a time, with a back-off for those that failed. It knows no object."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_SECONDS: Final = 0.5
MOST_SECONDS: Final = 60.0


class KeyedQueue(Generic[K]):
    """A key that is added while it is worked on comes again afterwards. Everything runs on one event loop."""

    def __init__(self, monotonic: Callable[[], float], jitter: Callable[[], float]) -> None:
        """``jitter`` gives numbers from 0 to 1."""
        self._monotonic, self._jitter = monotonic, jitter
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        """May hold entries that no longer count: the time in ``_due`` does."""
        self._order = itertools.count()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after_seconds: float = 0.0) -> None:
        """Look at the key, now or later; the earlier of two wishes counts."""
        at = self._monotonic() + after_seconds
        if key not in self._due or at < self._due[key]:
            self._due[key] = at
            if key not in self._working:
                self._push(key)

    async def take(self) -> K:
        """The next key that is due and that nobody works on."""
        while True:
            self._changed.clear()
            first = self._first()
            now = self._monotonic()
            if first is not None and first[0] <= now:
                heapq.heappop(self._heap)
                key = first[2]
                del self._due[key]
                self._working.add(key)
                return key
            with suppress(TimeoutError):
                async with asyncio.timeout(None if first is None else first[0] - now):
                    await self._changed.wait()

    def done(self, key: K, *, again_seconds: float | None = None) -> None:
        """The look has succeeded."""
        self._failures.pop(key, None)
        self._end(key)
        if again_seconds is not None:
            self.add(key, again_seconds)

    def failed(self, key: K) -> float:
        """The look has failed: it comes again, later each time. Seconds until then."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause = min(FIRST_SECONDS * 2.0 ** min(count, 16), MOST_SECONDS) * (0.5 + self._jitter() / 2)
        self._end(key)
        self.add(key, pause)
        return pause

    def failures(self, key: K) -> int:
        """How often the key has failed since it last succeeded."""
        return self._failures.get(key, 0)

    @property
    def due(self) -> bool:
        """Whether ``take`` would return at once."""
        first = self._first()
        return first is not None and first[0] <= self._monotonic()

    def __len__(self) -> int:
        return len(self._due) + len(self._working)

    def _first(self) -> tuple[float, int, K] | None:
        while self._heap:
            at, _, key = self._heap[0]
            if self._due.get(key) == at and key not in self._working:
                return self._heap[0]
            heapq.heappop(self._heap)
        return None

    def _push(self, key: K) -> None:
        heapq.heappush(self._heap, (self._due[key], next(self._order), key))
        self._changed.set()

    def _end(self, key: K) -> None:
        self._working.discard(key)
        if key in self._due:
            self._push(key)
