"""How much one pod may say: an allowance that fills again with time. No I/O; it waits for nobody.

One event loop and one process serve every agent of the cluster, so what one pod sends must not use up what all share.
"""

from collections import OrderedDict
from collections.abc import Callable

BYTES_MOST = 2 << 20
BYTES_PER_SECOND = 256 << 10
MESSAGE_COSTS_BYTES = 1024
"""A message costs so much more than its bytes."""
BEGUN_MOST = 60
BEGUN_PER_SECOND = 1.0
"""Attempts that pods begin, each of which may become an object."""
REMEMBERED = 4096


class RateLimit:
    """So much at once, and so much a second in the long run."""

    def __init__(self, monotonic: Callable[[], float], most: float, per_second: float) -> None:
        self._monotonic, self._most, self._per_second = monotonic, most, per_second
        self._left, self._at = most, monotonic()

    def spend(self, amount: float) -> float:
        """Take the amount in any case; in how many seconds it will have been earned."""
        self._fill()
        self._left -= amount
        return max(0.0, -self._left / self._per_second)

    def take(self, amount: float = 1) -> bool:
        """Take the amount if it is there."""
        self._fill()
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def _fill(self) -> None:
        now = self._monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now


class RateLimits:
    """Each pod's allowance of bytes, over all its connections."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._by_uid: OrderedDict[str, RateLimit] = OrderedDict()

    def of(self, pod_uid: str) -> RateLimit:
        """The pod's allowance."""
        found = self._by_uid.setdefault(pod_uid, RateLimit(self._monotonic, BYTES_MOST, BYTES_PER_SECOND))
        self._by_uid.move_to_end(pod_uid)
        while len(self._by_uid) > REMEMBERED:
            self._by_uid.popitem(last=False)
        return found
