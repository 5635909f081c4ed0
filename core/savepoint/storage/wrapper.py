"""Wrappers around a store: a prefix, a meter, retries. Each adds one behaviour and passes the same contract suite.

Every method takes, returns and raises what ``ObjectStore`` documents. A new behaviour is one more wrapper, not a flag.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from savepoint.storage.retry import Retry
from savepoint.storage.store import Buffer, ObjectInfo, ObjectStore, check_prefix, parts


class Prefixed:
    """The part of a store below a prefix, as a store of its own. Errors name keys as the store below knows them."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        """Limit the store.

        Args:
            store: The store below.
            prefix: Prepended to every key; empty, or ending in ``/``.

        Raises:
            ValueError: The prefix is invalid.
        """
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a prefix ends in a slash: {prefix!r}")
        self._store, self._prefix = store, check_prefix(prefix)

    def __repr__(self) -> str:
        return f"Prefixed({self._store!r}, {self._prefix!r})"

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object below the prefix."""
        self._store.put_new(self._prefix + key, data)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object below the prefix."""
        return self._store.get(self._prefix + key, max_bytes=max_bytes)

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range of the object below the prefix."""
        self._store.get_into(self._prefix + key, offset, target)

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and modification time; the key is reported without the prefix."""
        info = self._store.head(self._prefix + key)
        return info and replace(info, key=key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below both prefixes; keys are reported without this store's prefix."""
        for info in self._store.list(self._prefix + prefix):
            yield replace(info, key=info.key.removeprefix(self._prefix))

    def delete(self, key: str) -> None:
        """Delete the object below the prefix."""
        self._store.delete(self._prefix + key)


@dataclass(slots=True)
class Meter:
    """Counters of a metered store."""

    calls: int = 0
    puts: int = 0
    gets: int = 0
    bytes_put: int = 0
    bytes_got: int = 0


class Metered:
    """Counts the calls and bytes of the store below it."""

    def __init__(self, store: ObjectStore, meter: Meter | None = None) -> None:
        """Count the store's calls.

        Args:
            store: The store below.
            meter: The counters to raise; new ones by default. They are the attribute ``meter``.
        """
        self._store, self.meter, self._lock = store, meter or Meter(), threading.Lock()

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object; its bytes are counted if it was created."""
        self._count()
        self._store.put_new(key, data)
        self._count(calls=0, puts=1, bytes_put=sum(len(view) for view in parts(data)))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object, counting its bytes."""
        self._count()
        content = self._store.get(key, max_bytes=max_bytes)
        self._count(calls=0, gets=1, bytes_got=len(content))
        return content

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range, counting its bytes."""
        self._count()
        self._store.get_into(key, offset, target)
        self._count(calls=0, gets=1, bytes_got=target.nbytes)

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and modification time, counted as a call."""
        self._count()
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects, counted as one call."""
        self._count()
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        """Delete the object, counted as a call."""
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
    """Retries calls that raise StoreUnavailable. A listing is retried only until its first entry has been read."""

    def __init__(self, store: ObjectStore, retry: Retry | None = None) -> None:
        """Retry the store's calls.

        Args:
            store: The store below.
            retry: The policy; the default policy if None.
        """
        self._store, self._retry = store, retry or Retry()

    def __repr__(self) -> str:
        return f"Retrying({self._store!r})"

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object. After a lost response, an object with exactly these bytes is a success."""
        self._retry.put_new(self._store.put_new, self._store, key, data)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object."""
        return self._retry.run(lambda: self._store.get(key, max_bytes=max_bytes))

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range; a retry reads it again from its start."""
        self._retry.run(lambda: self._store.get_into(key, offset, target))

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and modification time."""
        return self._retry.run(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects."""

        def begin() -> tuple[ObjectInfo | None, Iterator[ObjectInfo]]:
            entries = self._store.list(prefix)
            return next(entries, None), entries

        first, rest = self._retry.run(begin)
        if first is not None:
            yield first
            yield from rest

    def delete(self, key: str) -> None:
        """Delete the object; a delete is idempotent, so it is simply repeated."""
        self._retry.run(lambda: self._store.delete(key))
