"""Proves that a store honours conditional creation, before anything is trusted to it.

It looks at one property only: of many writers of one new key exactly one may win, and its bytes must be there.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from savepoint.errors import ObjectExists, ObjectMissing, StoreMisconfigured, StoreUnavailable
from savepoint.storage.store import ObjectStore

PREFIX = "probe/"


def probe(store: ObjectStore, random_hex: str, *, writers: int = 16) -> None:
    """Race ``writers`` creations of ``probe/<random_hex>``; StoreMisconfigured if more or fewer than one wins.

    A writer whose answer is lost may have won, so it counts as a winner only if its bytes are there. The object is
    removed again.
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
        _judge(store, key, outcomes)
    finally:
        with suppress(StoreUnavailable):  # it would hide what went wrong first
            store.delete(key)


def _judge(store: ObjectStore, key: str, outcomes: list[str]) -> None:
    try:
        content = store.get(key, max_bytes=64)
    except ObjectMissing as error:
        if "won" not in outcomes:
            raise StoreUnavailable("none of the probe's writers reached the store; try again") from error
        raise StoreMisconfigured(f"the store confirmed {key} and then did not have it; it cannot be used") from error
    winners = {number for number, outcome in enumerate(outcomes) if outcome == "won"}
    written = next((number for number in range(len(outcomes)) if _content(number) == content), None)
    if written is None or len(winners) > 1 or (winners and written not in winners) or outcomes[written] == "lost":
        raise StoreMisconfigured(
            f"{len(winners)} of {len(outcomes)} concurrent creations of {key} were confirmed: the store ignores "
            "If-None-Match, so it cannot keep checkpoints apart; use a store that honours conditional writes"
        )
    try:
        store.put_new(key, b"again")
    except ObjectExists:
        return
    raise StoreMisconfigured(f"the store let {key} be written twice: it ignores If-None-Match; use another store")


def _content(number: int) -> bytes:
    return b"writer %d" % number
