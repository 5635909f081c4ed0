"""Probes whether a store supports conditional writes (If-None-Match), before it is trusted with checkpoints.

It tests one property: of many concurrent writers of a new key exactly one succeeds, and its bytes are stored.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from savepoint.errors import ObjectExists, ObjectMissing, StoreMisconfigured, StoreUnavailable
from savepoint.storage.store import ObjectStore

PREFIX = "probe/"


def probe(store: ObjectStore, random_hex: str, *, writers: int = 16) -> None:
    """Create ``probe/<random_hex>`` from several threads at once, and delete it again.

    Args:
        store: The store to probe.
        random_hex: A fresh random name for the probe's object.
        writers: The number of concurrent writers.

    Raises:
        StoreMisconfigured: Not exactly one writer succeeded, or the object can be replaced. A writer whose response
            was lost may have succeeded; it counts only if its bytes are stored.
        StoreUnavailable: No writer reached the store.
    """
    key, barrier = PREFIX + random_hex, threading.Barrier(writers)

    def write(number: int) -> str:
        barrier.wait()
        try:
            store.put_new(key, _content(number))
        except ObjectExists:
            return "lost"
        except StoreUnavailable:
            return "unknown"
        return "won"

    with ThreadPoolExecutor(writers) as pool:
        outcomes = list(pool.map(write, range(writers)))
    try:
        _check(store, key, outcomes)
    finally:
        with suppress(StoreUnavailable):  # a failed cleanup must not hide the first error
            store.delete(key)


def _check(store: ObjectStore, key: str, outcomes: list[str]) -> None:
    try:
        content = store.get(key, max_bytes=64)
    except ObjectMissing as error:
        if "won" not in outcomes:
            raise StoreUnavailable("none of the probe's writers reached the store; try again") from error
        raise StoreMisconfigured(f"the store confirmed {key} and then did not have it; use another store") from error
    winners = {number for number, outcome in enumerate(outcomes) if outcome == "won"}
    written = next((number for number in range(len(outcomes)) if _content(number) == content), None)
    if written is None or len(winners) > 1 or (winners and written not in winners) or outcomes[written] == "lost":
        raise StoreMisconfigured(
            f"{len(winners)} of {len(outcomes)} concurrent creations of {key} were confirmed: the store ignores "
            "If-None-Match, so two pods could overwrite each other's checkpoints; use a store that supports "
            "conditional writes"
        )
    try:
        store.put_new(key, b"again")
    except ObjectExists:
        return
    raise StoreMisconfigured(f"the store let {key} be written twice: it ignores If-None-Match; use another store")


def _content(number: int) -> bytes:
    return b"writer %d" % number
