"""The check that the packs of the parent checkpoint are still in the store, before new checkpoints refer to them.

It runs at the first attempt of a run and then at intervals. What is lost is stored again from the living agent.
"""

import logging
from collections.abc import Callable

from savepoint.errors import StoreDenied, StoreMisconfigured, StoreUnavailable, Unavailable
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.write.lost_packs import lost_packs
from savepoint.storage import BlobReader

log = logging.getLogger(__name__)


class PackCheck:
    """The packs known to be lost. It belongs to one incarnation and is used from one thread at a time."""

    def __init__(self, interval_seconds: float) -> None:
        """``interval_seconds``: the least time between two checks; 0 checks at every attempt."""
        self._interval_seconds = interval_seconds
        self._checked_at: float | None = None
        self._lost: set[str] = set()

    def lost_of(self, parent: Manifest | None) -> frozenset[str]:
        """Return the names of the parent's packs that are known to be lost."""
        return frozenset(self._lost & {pack.name for pack in parent.packs}) if parent is not None else frozenset()

    def run_if_due(self, blobs: BlobReader, parent: Manifest | None, now: float, check: Callable[[], None]) -> None:
        """Look up the parent's packs if the last check is old enough. Blocking.

        A store that gives no answer proves nothing: the check is repeated at the next attempt, and this one continues.
        ``check`` raises the error that ends the attempt.
        """
        if parent is None or (self._checked_at is not None and now < self._checked_at + self._interval_seconds):
            return
        try:
            found = lost_packs(blobs, parent.packs, check)
        except (StoreUnavailable, StoreDenied, StoreMisconfigured, Unavailable) as error:
            check()
            log.warning("cannot check the packs of earlier checkpoints: %s; checking again at the next attempt", error)
            return
        self._checked_at = now
        known, self._lost = self._lost, {each.name for each in found}
        for each in found:
            if each.name not in known:
                log.warning(
                    "a pack of earlier checkpoints is lost: %s. Checkpoints that need it cannot be restored whole; its "
                    "data is stored again with the next checkpoint. Look for an expiring lifecycle rule on the bucket, "
                    "or for who deleted it.",
                    each,
                )
