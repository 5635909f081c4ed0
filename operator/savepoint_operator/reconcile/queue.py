"""Keys that need a look, each at most once at a time, with a back-off for those that failed. It knows no object."""

import asyncio
from collections.abc import Callable, Hashable
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
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after_seconds: float = 0.0) -> None:
        """Look at the key, now or later; the earlier of two wishes counts."""
        at = self._monotonic() + after_seconds
        if key not in self._due or at < self._due[key]:
            self._due[key] = at
            self._changed.set()

    async def take(self) -> K:
        """The next key that is due and that nobody works on."""
        while True:
            self._changed.clear()
            now = self._monotonic()
            waiting = {key: at for key, at in self._due.items() if key not in self._working}
            key = min(waiting, key=waiting.__getitem__, default=None)
            if key is not None and waiting[key] <= now:
                del self._due[key]
                self._working.add(key)
                return key
            pause = None if key is None else waiting[key] - now
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass

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

    @property
    def due(self) -> bool:
        """Whether ``take`` would return at once."""
        now = self._monotonic()
        return any(at <= now and key not in self._working for key, at in self._due.items())

    def __len__(self) -> int:
        return len(self._due) + len(self._working)

    def _end(self, key: K) -> None:
        self._working.discard(key)
        self._changed.set()
