"""An agent's commit records in its store: find the newest, append the next, walk back.

Correctness rests on one conditional write per sequence; nothing here lists the store. When a record may be written is
decided by ``lineage``.
"""

from collections.abc import Iterator

from savepoint.errors import IntegrityError, ObjectExists, ObjectMissing, RollbackDetected, StoreUnavailable, Superseded
from savepoint.repository.format import commit
from savepoint.repository.format.commit import MAX_RECORD_BYTES, ChainRecord, CommitRecord
from savepoint.repository.format.object_keys import commit_key
from savepoint.storage.store import ObjectStore


class Chain:
    """The chain of one agent; ``store`` is limited to the agent's own prefix."""

    def __init__(self, store: ObjectStore, namespace: str, agent: str) -> None:
        self._store, self.namespace, self.agent = store, namespace, agent

    def head(self, pinned: ChainRecord | None = None) -> ChainRecord | None:
        """Return the newest record, searching upwards from the pinned one; None if the chain has no record.

        Without a pin the newest record is searched for, and only its own link is checked.

        Raises:
            RollbackDetected: The pinned record is missing, or another record has its sequence.
            IntegrityError: A record on the way is damaged or breaks the chain.
        """
        head = self._search() if pinned is None else self._confirm(pinned)
        while head is not None:
            after = self.find(head.record.sequence + 1)
            if after is None:
                return head
            self._check_link(after.record, head)
            head = after
        return None

    def find(self, sequence: int) -> ChainRecord | None:
        """Return the record of this sequence with its digest; None only if the store reports that it is missing."""
        key = commit_key(sequence)
        try:
            content = self._store.get(key, max_bytes=MAX_RECORD_BYTES)
        except ObjectMissing:
            return None
        record = commit.decode(content, key)
        if (record.namespace, record.agent, record.sequence) != (self.namespace, self.agent, sequence):
            raise IntegrityError(f"{key} is a record of another agent or sequence", key)
        return ChainRecord(record, commit.digest(content))

    def record(self, sequence: int) -> CommitRecord:
        """Return the record of this sequence; ObjectMissing if it does not exist."""
        found = self.find(sequence)
        if found is None:
            raise ObjectMissing(f"{self.namespace}/{self.agent} has no commit record {sequence}")
        return found.record

    def back(self, head: ChainRecord, depth: int) -> Iterator[ChainRecord]:
        """Yield the head and up to ``depth - 1`` records before it, newest first, checking each link."""
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

    def find_attempt(self, attempt: str, head: ChainRecord | None, depth: int = 64) -> ChainRecord | None:
        """Return the record that committed this attempt, if it is among the newest ``depth`` records."""
        if head is None:
            return None
        return next((each for each in self.back(head, depth) if each.record.attempt == attempt), None)

    def append(self, record: CommitRecord) -> ChainRecord:
        """Write the record under its sequence, once.

        If the store's response is lost, the record is read back to find out whether it was written.

        Raises:
            Superseded: Another record has the sequence.
            StoreUnavailable: The record may or may not exist; read the head again before deciding anything.
        """
        content = commit.encode(record)
        key = commit_key(record.sequence)
        try:
            self._store.put_new(key, content)
        except ObjectExists as error:
            if self._read_back(key) != content:
                raise self._lost_race(record) from error
        except StoreUnavailable as error:
            found = self._read_back(key)
            if found is None:
                raise
            if found != content:
                raise self._lost_race(record) from error
        return ChainRecord(record, commit.digest(content))

    def _lost_race(self, record: CommitRecord) -> Superseded:
        return Superseded(f"another writer took sequence {record.sequence} of {self.namespace}/{self.agent}")

    def _read_back(self, key: str) -> bytes | None:
        try:
            return self._store.get(key, max_bytes=MAX_RECORD_BYTES)
        except ObjectMissing:
            return None

    def _search(self) -> ChainRecord | None:
        """Find the newest record by doubling the sequence, then halving the interval."""
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

    def _confirm(self, pinned: ChainRecord) -> ChainRecord:
        key = commit_key(pinned.record.sequence)
        found = self.find(pinned.record.sequence)
        if found is None:
            raise RollbackDetected(
                f"{key} of {self.namespace}/{self.agent} is pinned but missing: the store was emptied or restored "
                "from an older copy",
                key,
            )
        if found.digest != pinned.digest:
            raise RollbackDetected(
                f"{key} of {self.namespace}/{self.agent} is not the pinned record: the store was changed", key
            )
        return found

    def _check_link(self, record: CommitRecord, before: ChainRecord) -> None:
        problem = commit.link_problem(record, before)
        if problem:
            key = commit_key(record.sequence)
            raise IntegrityError(f"{key} of {self.namespace}/{self.agent} breaks the chain: {problem}", key)
