"""One daemon thread for what the agent must not wait for: messages without an answer, and alarms.

Handing it a job is safe in a signal handler. It knows nothing of what a job does; a job that fails is logged.
"""

import heapq
import logging
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from savepoint.errors import SavepointError

Job = Callable[[], object]
log: Final = logging.getLogger("savepoint")


class BackgroundThread:
    """Runs jobs in order, and later ones at their time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[float, Job] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin working."""
        self._thread = threading.Thread(target=self._work, name="savepoint-clerk", daemon=True)
        self._thread.start()

    def do(self, job: Job, after_seconds: float = 0.0) -> None:
        """Hand over a job; it runs soon, or once ``after_seconds`` have passed."""
        self._jobs.put((monotonic() + after_seconds, job))

    def stop(self) -> None:
        """End after the job at hand; what was to come later is dropped."""
        self._jobs.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _work(self) -> None:
        later: list[tuple[float, int, Job]] = []
        count = 0
        while True:
            wait = max(0.0, later[0][0] - monotonic()) if later else None
            try:
                item = self._jobs.get(timeout=wait)
            except queue.Empty:
                _run(heapq.heappop(later)[2])
                continue
            if item is None:
                return
            count += 1
            if item[0] <= monotonic():
                _run(item[1])
            else:
                heapq.heappush(later, (item[0], count, item[1]))


def _run(job: Job) -> None:
    try:
        job()
    except SavepointError as error:
        log.debug("the sidecar did not take a message: %s", error)
    except Exception:
        log.exception("a job of the SDK failed; the agent goes on")
