"""A daemon thread for work that the agent must not wait for: messages without an answer, and timers.

Submitting a job is safe in a signal handler. A job that fails is logged.
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
    """Runs submitted jobs in order, and delayed jobs when they are due."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[float, Job] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="savepoint-background", daemon=True)
        self._thread.start()

    def submit(self, job: Job, after_seconds: float = 0.0) -> None:
        """Run ``job`` soon, or once ``after_seconds`` have passed."""
        self._jobs.put((monotonic() + after_seconds, job))

    def stop(self) -> None:
        """Stop after the current job; delayed jobs are dropped."""
        self._jobs.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _work(self) -> None:
        delayed: list[tuple[float, int, Job]] = []
        count = 0  # breaks ties, since jobs cannot be compared
        while True:
            wait = max(0.0, delayed[0][0] - monotonic()) if delayed else None
            try:
                item = self._jobs.get(timeout=wait)
            except queue.Empty:
                _run(heapq.heappop(delayed)[2])
                continue
            if item is None:
                return
            due, job = item
            count += 1
            if due <= monotonic():
                _run(job)
            else:
                heapq.heappush(delayed, (due, count, job))


def _run(job: Job) -> None:
    try:
        job()
    except SavepointError as error:
        log.debug("sidecar did not accept a message: %s", error)
    except Exception:
        log.exception("a background job of the SDK failed; the agent continues")
