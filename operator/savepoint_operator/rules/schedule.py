"""Schedule of interval checkpoints. Pure: monotonic seconds and random numbers are arguments."""

from datetime import datetime, timedelta

from savepoint_operator.model.objects import Interval

FIRST_SECONDS = 30.0
"""Longest wait for the first checkpoint of an agent that has none, whatever its period."""
JITTER_FRACTION = 0.1
SPREAD_SECONDS = 30.0


def wait_seconds(interval: Interval, random_fraction: float) -> float:
    """Return the period, lengthened by a random fraction (0 to 1) of the jitter."""
    jitter = interval.period_seconds * JITTER_FRACTION if interval.jitter_seconds is None else interval.jitter_seconds
    return interval.period_seconds + jitter * random_fraction


def due_at(
    interval: Interval,
    random_fraction: float,
    *,
    last_start: float | None,
    connected_at: float,
    has_checkpoint: bool,
) -> float:
    """Return when the next checkpoint is due, counted from the last attempt's start, else from the connection."""
    wait = wait_seconds(interval, random_fraction)
    if last_start is not None:
        # After an operator outage many agents are overdue at once: spread them so that they do not all start together.
        spread = min(interval.period_seconds * JITTER_FRACTION, SPREAD_SECONDS) * random_fraction
        return max(last_start + wait, connected_at + spread)
    return connected_at + (wait if has_checkpoint else min(wait, FIRST_SECONDS))


def seconds_since(then: datetime | None, now: datetime, limit: float) -> float | None:
    """Return the age of a time, kept within 0 and ``limit`` since clocks may have jumped; None without a time."""
    if then is None:
        return None
    return min(max((now - then) / timedelta(seconds=1), 0.0), limit)
