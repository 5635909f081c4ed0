"""The retry policy for calls to a store.

Only StoreUnavailable is retried, and a put whose earlier attempt may have succeeded recognises its own object. This
module opens no connection.
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
    """A retry policy: exponential back-off with jitter, bounded by attempts and by time."""

    attempts: int = 6
    base_seconds: float = 0.2
    longest_seconds: float = 5.0
    total_seconds: float = 120.0
    """No attempt starts later than this after the first one."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def run(self, call: Callable[[], T]) -> T:
        """Call until it succeeds.

        Args:
            call: What to call; it may run several times.

        Returns:
            The result of the first call that succeeds.

        Raises:
            StoreUnavailable: The last attempt failed, or time ran out. Every other error is raised at once.
            ValueError: The policy allows no attempt.
        """
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
        """Create an object with retries. After a lost response, an object with exactly these bytes is a success.

        Args:
            put: Makes one attempt to create the object.
            reader: Reads the object back.
            key: The object's key.
            data: The content, or its parts.

        Raises:
            ObjectExists: The key was taken before the first attempt, or holds other bytes.
            StoreUnavailable: The last attempt failed; the object may or may not exist.
        """
        response_lost = False

        def once() -> None:
            nonlocal response_lost
            try:
                put(key, data)
            except StoreUnavailable:
                response_lost = True
                raise
            except ObjectExists:
                if not (response_lost and has_content(reader, key, data)):
                    raise

        self.run(once)


def has_content(reader: BlobReader, key: str, data: Buffer | Sequence[Buffer]) -> bool:
    """Return whether the object consists of exactly these bytes. Reads it piece by piece, never whole."""
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
