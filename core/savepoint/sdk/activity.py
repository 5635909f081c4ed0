"""What the agent is at, for people: live loops, steps that run, and since when. It decides nothing."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from savepoint.contract.agent_protocol import Execution
from savepoint.sdk.ledger import Ledger
from savepoint.sdk.loop import Loop


class Activity:
    """Kept by the agent as it goes."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.loops: dict[int, Loop[Any]] = {}  # by identity; changed without a lock, read by a copy
        self._running: dict[int, list[tuple[str, float]]] = {}  # thread -> what it runs, innermost last

    def begin(self, what: str) -> None:
        """This thread starts something that may take long."""
        self._running.setdefault(threading.get_ident(), []).append((what, self._clock()))

    def end(self) -> None:
        """It is over."""
        me = threading.get_ident()
        running = self._running[me]
        running.pop()
        if not running:
            del self._running[me]

    def execution(self, ledger: Ledger) -> Execution:
        """For a flush; the caller holds the lock."""
        loops = sorted(self.loops.copy().values(), key=lambda loop: loop.scope.path.count("/"))
        step = loops[0].describe() if loops else None
        parts = [loop.describe() for loop in loops]
        parts += [self._line(running[-1]) for running in list(self._running.values()) if running]
        return Execution(
            step=step,
            open=tuple(sorted(ledger.running)),
            uncertain=tuple(item.id for item in ledger.uncertain()),
            detail=", ".join(parts),
        )

    def obstacle(self, threads: list[int]) -> str:
        """`` (in step "crawl" for 94 s)``: what these threads, or all of them, are at."""
        running = [self._line(stack[-1]) for thread, stack in list(self._running.items()) if stack
                   and (not threads or thread in threads)]  # fmt: skip
        if running:
            return f" (in {', '.join(running)})"
        names = [thread.name for thread in threading.enumerate() if thread.ident in threads]
        return f" (thread {', '.join(names)} is between two safe points)" if names else ""

    def _line(self, entry: tuple[str, float]) -> str:
        return f"{entry[0]} for {self._clock() - entry[1]:.0f} s"
