"""CPU time as a ratio to a reference in the same process, which a loaded or slow machine does not change."""

import time
from collections.abc import Callable


def cpu_ratio(work: Callable[[], object], reference: Callable[[], object], rounds: int = 3) -> float:
    """Return how many times the CPU time of ``reference`` the ``work`` takes; of each, the fastest round counts."""
    return min(_cpu_seconds(work) for _ in range(rounds)) / min(_cpu_seconds(reference) for _ in range(rounds))


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
