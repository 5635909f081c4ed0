"""Stores around a store: a prefix, a meter, retries. Each adds one behaviour and passes the same contract suite.

Not a place for flags: what a store should also do becomes one more wrapper.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from savepoint.storage.retry import Retry
from savepoint.storage.store import Buffer, ObjectInfo, ObjectStore, check_prefix, parts


class Prefixed:
    """The part of a store below ``prefix`` (which ends in ``/``, or is empty), as a store of its own."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a prefix ends in a slash: {prefix!r}")
        self._store, self._prefix = store, check_prefix(prefix)

    def __repr__(self) -> str:
        return f"Prefixed({self._store!r}, {self._prefix!r})"

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create below the prefix."""
        self._store.put_new(self._prefix + key, data)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object below the prefix."""
        return self._store.get(self._prefix + key, max_bytes=max_bytes)

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """A range of the object below the prefix."""
        self._store.get_into(self._prefix + key, offset, target)

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time, with the key as seen from below the prefix."""
        info = self._store.head(self._prefix + key)
        return info and replace(info, key=key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below both prefixes, keys as seen from below ours."""
        for info in self._store.list(self._prefix + prefix):
            yield replace(info, key=info.key.removeprefix(self._prefix))

    def delete(self, key: str) -> None:
        """Remove the object below the prefix."""
        self._store.delete(self._prefix + key)


@dataclass(slots=True)
class Meter:
    """Counts of what went through a metered store."""

    calls: int = 0
    puts: int = 0
    gets: int = 0
    bytes_put: int = 0
    bytes_got: int = 0


class Metered:
    """Counts calls and bytes of the store below it in ``meter``."""

    def __init__(self, store: ObjectStore, meter: Meter | None = None) -> None:
        self._store, self.meter, self._lock = store, meter or Meter(), threading.Lock()

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create, and count the bytes if it was created."""
        self._count()
        self._store.put_new(key, data)
        self._count(calls=0, puts=1, bytes_put=sum(len(view) for view in parts(data)))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object, counted."""
        self._count()
        content = self._store.get(key, max_bytes=max_bytes)
        self._count(calls=0, gets=1, bytes_got=len(content))
        return content

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """A range, counted."""
        self._count()
        self._store.get_into(key, offset, target)
        self._count(calls=0, gets=1, bytes_got=target.nbytes)

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time, counted as a call."""
        self._count()
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The listing, counted as one call."""
        self._count()
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        """Remove, counted as a call."""
        self._count()
        self._store.delete(key)

    def _count(self, *, calls: int = 1, puts: int = 0, gets: int = 0, bytes_put: int = 0, bytes_got: int = 0) -> None:
        with self._lock:
            self.meter.calls += calls
            self.meter.puts += puts
            self.meter.gets += gets
            self.meter.bytes_put += bytes_put
            self.meter.bytes_got += bytes_got


class Retrying:
    """Tries what was StoreUnavailable again. A listing is not resumed: only its first answer is tried again."""

    def __init__(self, store: ObjectStore, retry: Retry | None = None) -> None:
        self._store, self._retry = store, retry or Retry()

    def __repr__(self) -> str:
        return f"Retrying({self._store!r})"

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create; an object with our bytes, found after a lost answer, is our own success."""
        self._retry.put_new(self._store.put_new, self._store, key, data)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object."""
        return self._retry.run(lambda: self._store.get(key, max_bytes=max_bytes))

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """A range; an attempt that failed half way is read again from its start."""
        self._retry.run(lambda: self._store.get_into(key, offset, target))

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time."""
        return self._retry.run(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The listing, begun anew for as long as its first entry cannot be had."""

        def begin() -> tuple[ObjectInfo | None, Iterator[ObjectInfo]]:
            entries = self._store.list(prefix)
            return next(entries, None), entries

        first, rest = self._retry.run(begin)
        if first is not None:
            yield first
            yield from rest

    def delete(self, key: str) -> None:
        """Remove; idempotent, so simply tried again."""
        self._retry.run(lambda: self._store.delete(key))
