"""How often, and how patiently, a call to a store is tried again.

A policy and the two rules that go with it: only StoreUnavailable is tried again, and a put that may have been applied
recognises its own object. It opens no connection.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from savepoint.errors import IntegrityError, ObjectExists, ObjectMissing, StoreUnavailable
from savepoint.storage.store import BlobReader, Buffer, parts

T = TypeVar("T")

_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with full jitter, bounded by attempts and by time."""

    attempts: int = 6
    base_seconds: float = 0.2
    longest_seconds: float = 5.0
    total_seconds: float = 120.0
    """No attempt starts later than this after the first one."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def run(self, call: Callable[[], T]) -> T:
        """The call's answer; the last StoreUnavailable when attempts or time are used up."""
        start = self.clock()
        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except StoreUnavailable:
                ceiling = min(self.longest_seconds, self.base_seconds * 2 ** (attempt - 1))
                pause = ceiling * (0.5 + self.jitter() / 2)
                if attempt == self.attempts or self.clock() - start + pause > self.total_seconds:
                    raise
                self.sleep(pause)
        raise ValueError("a retry policy needs at least one attempt")

    def put_new(
        self,
        put: Callable[[str, Buffer | Sequence[Buffer]], None],
        reader: BlobReader,
        key: str,
        data: Buffer | Sequence[Buffer],
    ) -> None:
        """Put with retries. After an answer was lost, an object with exactly these bytes counts as our own."""
        lost_answer = False

        def once() -> None:
            nonlocal lost_answer
            try:
                put(key, data)
            except StoreUnavailable:
                lost_answer = True
                raise
            except ObjectExists:
                if not (lost_answer and holds(reader, key, data)):
                    raise

        self.run(once)


def holds(reader: BlobReader, key: str, data: Buffer | Sequence[Buffer]) -> bool:
    """Whether the object's bytes are exactly these; read in pieces, never whole."""
    views = parts(data)
    info = reader.head(key)
    if info is None or info.size != sum(len(view) for view in views):
        return False
    piece = memoryview(bytearray(min(_COMPARE_BYTES, max(info.size, 1))))
    offset = 0
    try:
        for view in views:
            for start in range(0, len(view), len(piece)):
                expected = view[start : start + len(piece)]
                reader.get_into(key, offset, piece[: len(expected)])
                if piece[: len(expected)] != expected:
                    return False
                offset += len(expected)
    except (ObjectMissing, IntegrityError):
        return False
    return True
