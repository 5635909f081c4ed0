"""When a checkpoint by time is due. Pure: monotonic seconds and random numbers come in as arguments."""

from datetime import datetime, timedelta

from savepoint_operator.model.objects import Interval

FIRST_SECONDS = 30.0
"""An agent that has no checkpoint at all gets its first one so soon, whatever its period."""
JITTER_PART = 0.1
SPREAD_SECONDS = 30.0


def wait_seconds(interval: Interval, random_part: float) -> float:
    """The period, lengthened by a random part of the jitter. ``random_part`` is from 0 to 1."""
    most = interval.period_seconds * JITTER_PART if interval.jitter_seconds is None else interval.jitter_seconds
    return interval.period_seconds + most * random_part


def due_at(
    interval: Interval,
    random_part: float,
    *,
    last_start: float | None,
    connected_at: float,
    has_checkpoint: bool,
) -> float:
    """Counted from the start of the last attempt; without one from when the sidecar connected."""
    wait = wait_seconds(interval, random_part)
    if last_start is not None:
        # After a pause of the operator many are overdue at once: they do not all begin in the same second.
        return max(
            last_start + wait, connected_at + min(interval.period_seconds * JITTER_PART, SPREAD_SECONDS) * random_part
        )
    return connected_at + (wait if has_checkpoint else min(wait, FIRST_SECONDS))


def seconds_since(then: datetime | None, now: datetime, most: float) -> float | None:
    """How long ago, bounded on both sides: clocks may have jumped since it was written."""
    if then is None:
        return None
    return min(max((now - then) / timedelta(seconds=1), 0.0), most)
