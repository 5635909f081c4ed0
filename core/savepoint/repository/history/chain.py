"""An agent's commit records in its store: finding the newest, adding the next, looking back.

Correctness rests on one conditional write per sequence; nothing here lists. When a record may be written is decided by
``lineage``.
"""

from collections.abc import Iterator

from savepoint.errors import IntegrityError, ObjectExists, ObjectMissing, RollbackDetected, StoreUnavailable, Superseded
from savepoint.repository.format import commit
from savepoint.repository.format.commit import MAX_RECORD_BYTES, CommitRecord, Head
from savepoint.storage.store import ObjectStore


class Chain:
    """The chain of one agent; ``store`` is already the agent's own part of it."""

    def __init__(self, store: ObjectStore, namespace: str, agent: str) -> None:
        self._store, self.namespace, self.agent = store, namespace, agent

    def head(self, pinned: Head | None = None) -> Head | None:
        """The newest record, found upwards from the pinned one; None if there is no record at all.

        RollbackDetected if the pinned record is gone or another one is in its place, IntegrityError if a link on the
        way is broken. Without a pin the newest is searched for, and only its own link is checked.
        """
        head = self._search() if pinned is None else self._confirm(pinned)
        while head is not None:
            after = self.find(head.record.sequence + 1)
            if after is None:
                return head
            self._check_link(after.record, head)
            head = after
        return None

    def find(self, sequence: int) -> Head | None:
        """The record of this sequence with its digest; None only if the store says that there is none."""
        key = commit_key(sequence)
        try:
            content = self._store.get(key, max_bytes=MAX_RECORD_BYTES)
        except ObjectMissing:
            return None
        record = commit.decode(content, key)
        if (record.namespace, record.agent, record.sequence) != (self.namespace, self.agent, sequence):
            raise IntegrityError(f"{key} is a record of another agent or sequence", key)
        return Head(record, commit.digest(content))

    def record(self, sequence: int) -> CommitRecord:
        """The record of this sequence; ObjectMissing if there is none."""
        found = self.find(sequence)
        if found is None:
            raise ObjectMissing(f"{self.namespace}/{self.agent} has no commit record {sequence}")
        return found.record

    def back(self, head: Head, depth: int) -> Iterator[Head]:
        """The head and up to ``depth - 1`` records before it, newest first, each link checked."""
        current = head
        for _ in range(depth):
            yield current
            sequence = current.record.sequence - 1
            if sequence < 1:
                return
            before = self.find(sequence)
            if before is None:
                key = commit_key(sequence)
                raise IntegrityError(f"{key} is missing below the head: the chain has a gap", key)
            self._check_link(current.record, before)
            current = before

    def find_attempt(self, attempt: str, head: Head | None, depth: int = 64) -> Head | None:
        """The record that committed this attempt, among the newest ``depth`` ones."""
        if head is None:
            return None
        return next((each for each in self.back(head, depth) if each.record.attempt == attempt), None)

    def append(self, record: CommitRecord) -> Head:
        """Write the record under its sequence. Superseded if another record is there, or comes to be there.

        When the store's answer is lost the record is read back; if that is no answer either, StoreUnavailable: the
        record may exist, and the caller looks again before it decides anything.
        """
        content = commit.encode(record)
        key = commit_key(record.sequence)
        try:
            self._store.put_new(key, content)
        except ObjectExists as error:
            if self._reread(key) != content:
                raise Superseded(
                    f"another writer took sequence {record.sequence} of {self.namespace}/{self.agent}"
                ) from error
        except StoreUnavailable as error:
            found = self._reread(key)
            if found is None:
                raise
            if found != content:
                raise Superseded(
                    f"another writer took sequence {record.sequence} of {self.namespace}/{self.agent}"
                ) from error
        return Head(record, commit.digest(content))

    def _reread(self, key: str) -> bytes | None:
        try:
            return self._store.get(key, max_bytes=MAX_RECORD_BYTES)
        except ObjectMissing:
            return None

    def _search(self) -> Head | None:
        low, step = self.find(1), 1
        if low is None:
            return None
        high: int | None = None
        while high is None or high - low.record.sequence > 1:
            at = low.record.sequence + step if high is None else (low.record.sequence + high) // 2
            found = self.find(at)
            if found is None:
                high = at
            else:
                low, step = found, step * 2
        for _ in self.back(low, 2):
            pass
        return low

    def _confirm(self, pinned: Head) -> Head:
        key = commit_key(pinned.record.sequence)
        found = self.find(pinned.record.sequence)
        if found is None:
            raise RollbackDetected(
                f"{key} of {self.namespace}/{self.agent} is pinned and gone: the store was put back or emptied", key
            )
        if found.digest != pinned.digest:
            raise RollbackDetected(
                f"{key} of {self.namespace}/{self.agent} is not the pinned record: the store was changed", key
            )
        return found

    def _check_link(self, record: CommitRecord, before: Head) -> None:
        problem = commit.follows(record, before)
        if problem:
            key = commit_key(record.sequence)
            raise IntegrityError(f"{key} of {self.namespace}/{self.agent} breaks the chain: {problem}", key)


def commit_key(sequence: int) -> str:
    """Where the record of this sequence is."""
    return f"commits/{sequence:020d}"
