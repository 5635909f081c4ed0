"""The agent's current activity, for people to read: open loops, running steps, and since when. It decides nothing."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from savepoint.contract.agent_protocol import Execution
from savepoint.sdk.ledger import Ledger
from savepoint.sdk.loop import Loop


class Activity:
    """The open loops and running calls of one agent."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.loops: dict[int, Loop[Any]] = {}  # by identity; changed without a lock, so read from a copy
        self._running: dict[int, list[tuple[str, float]]] = {}  # thread -> calls and their start, innermost last

    def begin(self, what: str) -> None:
        """Note that this thread starts a call that may take long."""
        self._running.setdefault(threading.get_ident(), []).append((what, self._clock()))

    def end(self) -> None:
        """Note that this thread's innermost call has returned."""
        thread = threading.get_ident()
        running = self._running[thread]
        running.pop()
        if not running:
            del self._running[thread]

    def execution(self, ledger: Ledger) -> Execution:
        """Return the progress to send with a flush; the caller holds the lock."""
        loops = sorted(self.loops.copy().values(), key=lambda loop: loop.scope.path.count("/"))
        details = [loop.describe() for loop in loops]
        details += [self._describe(calls[-1]) for calls in list(self._running.values()) if calls]
        return Execution(
            step=loops[0].describe() if loops else None,
            open=tuple(sorted(ledger.running)),
            uncertain=tuple(item.id for item in ledger.uncertain()),
            detail=", ".join(details),
        )

    def describe_threads(self, threads: list[int]) -> str:
        """Return what these threads, or all if the list is empty, are doing: `` (in step 'crawl' for 94 s)``."""
        running = [
            self._describe(calls[-1])
            for thread, calls in list(self._running.items())
            if calls and (not threads or thread in threads)
        ]
        if running:
            return f" (in {', '.join(running)})"
        names = [thread.name for thread in threading.enumerate() if thread.ident in threads]
        return f" (thread {', '.join(names)} is between two safe points)" if names else ""

    def _describe(self, call: tuple[str, float]) -> str:
        what, since = call
        return f"{what} for {self._clock() - since:.0f} s"
