"""The clocks that the operator's parts are given; no part reads the time on its own."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Clocks:
    """The wall clock and the monotonic clock of one process."""

    now: Callable[[], datetime]
    """Return the time of day, timezone-aware."""
    monotonic: Callable[[], float]
    """Return monotonic seconds."""
