"""Counts the signals that ``savepoint run`` gets: each further one is stronger."""

from typing import Final


class SignalCount:
    """Counts signals. One that arrives twice at the same time, as from ``timeout``, counts once."""

    SAME_SECONDS: Final = 0.1

    def __init__(self) -> None:
        self.count = 0
        self._last: tuple[int, float] = (0, 0.0)

    def add(self, number: int, now: float) -> int:
        """Count a signal. Returns the count, or 0 if this is the previous one again."""
        last_number, last_time = self._last
        self._last = (number, now)
        if number == last_number and now - last_time < self.SAME_SECONDS:
            return 0
        self.count += 1
        return self.count
