"""Limits of what one pod may send: token buckets that refill over time. No I/O; a bucket never waits itself.

One event loop in one process serves every agent of the cluster, so no single pod may use up what all share.
"""

from collections import OrderedDict
from collections.abc import Callable

BURST_BYTES = 2 << 20
BYTES_PER_SECOND = 256 << 10
MESSAGE_OVERHEAD_BYTES = 1024
"""Charged for each message in addition to its bytes."""
BURST_ATTEMPTS = 60
ATTEMPTS_PER_SECOND = 1.0
"""Limit for attempts that pods begin on their own; each may become an object."""
MAX_REMEMBERED = 4096


class RateLimit:
    """A token bucket: a burst at once, and a rate per second in the long run."""

    def __init__(self, monotonic: Callable[[], float], burst: float, per_second: float) -> None:
        self._monotonic, self._burst, self._per_second = monotonic, burst, per_second
        self._left, self._refilled_at = burst, monotonic()

    def spend(self, amount: float) -> float:
        """Take the amount, going into debt if need be, and return the seconds until the debt is paid off."""
        self._refill()
        self._left -= amount
        return max(0.0, -self._left / self._per_second)

    def take(self, amount: float = 1) -> bool:
        """Take the amount if it is available, and return whether it was."""
        self._refill()
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def _refill(self) -> None:
        now = self._monotonic()
        self._left = min(self._burst, self._left + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now


class RateLimits:
    """The limit of bytes for each pod, shared by all its connections."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._by_uid: OrderedDict[str, RateLimit] = OrderedDict()

    def of(self, pod_uid: str) -> RateLimit:
        """Return the pod's limit."""
        found = self._by_uid.setdefault(pod_uid, RateLimit(self._monotonic, BURST_BYTES, BYTES_PER_SECOND))
        self._by_uid.move_to_end(pod_uid)
        while len(self._by_uid) > MAX_REMEMBERED:
            self._by_uid.popitem(last=False)
        return found
