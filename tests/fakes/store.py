"""Stores for tests: one in memory, and one that fails as scripted.

Both pass the contract suite as long as no fault is scripted. They are fakes, not mocks: an object that was put can be
read, any other is missing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from savepoint.errors import IntegrityError, ObjectExists, ObjectMissing, SavepointError
from savepoint.storage.store import Buffer, ObjectInfo, ObjectStore, check_key, check_prefix, parts

START = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryStore:
    """Objects in a dict. Tests may read and damage ``objects``."""

    def __init__(self, now: Callable[[], datetime] = lambda: START) -> None:
        self._now, self._lock = now, threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, datetime] = {}

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object."""
        content = b"".join(parts(data))
        with self._lock:
            if check_key(key) in self.objects:
                raise ObjectExists(f"object {key} already exists")
            self.objects[key], self.modified[key] = content, self._now()

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object."""
        content = self._content(key)
        if len(content) > max_bytes:
            raise IntegrityError(f"object {key} holds {len(content)} bytes, at most {max_bytes} are expected", key)
        return content

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range of the object."""
        piece = self._content(key)[offset : offset + target.nbytes]
        if len(piece) < target.nbytes:
            raise IntegrityError(f"object {key} ends at byte {offset + len(piece)}", key)
        target.cast("B")[:] = piece

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and modification time."""
        content = self.objects.get(check_key(key))
        return None if content is None else ObjectInfo(key, len(content), self.modified.get(key, START))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below the prefix, sorted by key."""
        check_prefix(prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]), self.modified.get(key, START))

    def delete(self, key: str) -> None:
        """Delete the object."""
        with self._lock:
            self.objects.pop(check_key(key), None)

    def _content(self, key: str) -> bytes:
        content = self.objects.get(check_key(key))
        if content is None:
            raise ObjectMissing(f"object {key} is not in the store")
        return content


@dataclass(frozen=True)
class Call:
    """One call that reached a FaultyStore."""

    number: int
    """From 1, over all methods."""
    method: str
    key: str


@dataclass(frozen=True)
class Fault:
    """An error in place of a response; with ``applied``, the store performs the call first."""

    error: SavepointError
    applied: bool = False


Script = Callable[[Call], Fault | None]


class FaultyStore:
    """A wrapper that consults a script at every call. ``calls`` lists the calls, in order."""

    def __init__(self, store: ObjectStore, script: Script = lambda _: None) -> None:
        self._store, self._lock = store, threading.Lock()
        self.script = script
        self.calls: list[Call] = []

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object, or fail as scripted."""
        fault = self._record("put_new", key)
        if fault is None or fault.applied:
            self._store.put_new(key, data)
        self._fail(fault)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object, or fail as scripted."""
        self._fail(self._record("get", key))
        return self._store.get(key, max_bytes=max_bytes)

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range, or fail as scripted, possibly after the target was filled."""
        fault = self._record("get_into", key)
        if fault is None or fault.applied:
            self._store.get_into(key, offset, target)
        self._fail(fault)

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and time, or fail as scripted."""
        self._fail(self._record("head", key))
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects, or fail at the start as scripted."""
        self._fail(self._record("list", prefix))
        yield from self._store.list(prefix)

    def delete(self, key: str) -> None:
        """Delete the object, or fail as scripted."""
        fault = self._record("delete", key)
        if fault is None or fault.applied:
            self._store.delete(key)
        self._fail(fault)

    def _record(self, method: str, key: str) -> Fault | None:
        with self._lock:
            call = Call(len(self.calls) + 1, method, key)
            self.calls.append(call)
        return self.script(call)

    @staticmethod
    def _fail(fault: Fault | None) -> None:
        if fault is not None:
            raise fault.error


def at(positions: dict[int, Fault]) -> Script:
    """Return a script of faults by the position of the call."""
    return lambda call: positions.get(call.number)


def always(method: str, fault: Fault) -> Script:
    """Return a script that fails every call of one method."""
    return lambda call: fault if call.method == method else None
