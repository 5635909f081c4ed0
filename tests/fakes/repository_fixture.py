"""A repository in memory with everything that is not content fixed: key, salt, nonces, names, time.

It drives the product's own code from grant to commit, so that a test contains only what it is about.
"""

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Manifest, Parent
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.lineage import UploadedCheckpoint
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.repository import Repository, open_store
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions
from savepoint.storage.store import ObjectStore

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TIME = time_text(NOW)
MASTER = MasterKey(bytes(range(32)))
NAMESPACE, AGENT = "default", "coder"


class SeededBytes:
    """A source of bytes that look random and are the same in every run."""

    def __init__(self, seed: str = "seed") -> None:
        self._seed, self._count = seed, 0

    def __call__(self, length: int) -> bytes:
        """Return the next bytes."""
        self._count += 1
        return content(f"{self._seed} {self._count}", length)


def content(seed: str, length: int) -> bytes:
    """Return incompressible bytes that depend on the seed alone."""
    return hashlib.shake_256(seed.encode()).digest(length)


def attempt(number: int) -> str:
    """Return the id of an attempt."""
    return f"{number:032x}"


Fill = Callable[[CheckpointWriter], object]


class RepositoryFixture:
    """The repository of one agent, with one incarnation after the other."""

    def __init__(self, store: ObjectStore) -> None:
        self.random = SeededBytes()
        open_store(store, "cluster", MASTER)
        self.store = store
        self.repository = Repository.open_or_create(store, NAMESPACE, AGENT, MASTER, now=NOW, random_bytes=self.random)
        self.chain = Chain(self.repository.store, NAMESPACE, AGENT)
        self.head: ChainRecord = lineage.grant(self.chain, None, "pod-1", "node-1", TIME)
        self.manifest: Manifest | None = None
        self.parent: Parent | None = None
        self.index: ChunkIndex | None = None
        self.attempts = 0

    @property
    def epoch(self) -> int:
        """The newest incarnation's epoch."""
        return self.head.record.epoch

    @property
    def pod(self) -> str:
        """The newest incarnation's pod."""
        return self.head.record.pod_uid

    def grant(self, pod: str) -> ChainRecord:
        """Grant an epoch to a new incarnation, which has no index."""
        self.head = lineage.grant(self.chain, self.head, pod, "node-1", TIME)
        self.index = None
        return self.head

    def writer(self, threads: int = 1) -> CheckpointWriter:
        """Return a writer on the newest checkpoint."""
        return CheckpointWriter(
            self.repository.store,
            self.repository.store,
            self.repository.key,
            self.epoch,
            self.manifest,
            index=self.index,
            options=WriterOptions(threads=threads, random_bytes=self.random),
        )

    def offer(self, fill: Fill, threads: int = 1) -> UploadedCheckpoint:
        """Write a checkpoint without committing it; return its offer."""
        self.attempts += 1
        writer = self.writer(threads)
        try:
            fill(writer)
            offer = finish(writer, self.attempts, self.parent)
        except BaseException:
            self.index = writer.abort()
            raise
        self.index = writer.commit()
        self.manifest = writer.manifest
        return offer

    def commit(self, offer: UploadedCheckpoint, *, completed: bool = False) -> ChainRecord:
        """Commit an offer."""
        self.head = lineage.commit_checkpoint(
            self.repository,
            self.chain,
            self.head,
            offer,
            epoch=self.epoch,
            pod_uid=self.pod,
            time=TIME,
            trigger="Interval",
            completed=completed,
        )
        self.parent = Parent(self.head.record.sequence, offer.name)
        return self.head

    def checkpoint(self, fill: Fill, threads: int = 1) -> UploadedCheckpoint:
        """Write and commit a checkpoint."""
        offer = self.offer(fill, threads)
        self.commit(offer)
        return offer

    def reader(self, manifest: Manifest | None = None) -> CheckpointReader:
        """Return a reader of this manifest, or of the newest checkpoint."""
        found = manifest or self.manifest
        assert found is not None
        return CheckpointReader(self.repository.store, self.repository.key, found, threads=1)


def finish(
    writer: CheckpointWriter, number: int, parent: Parent | None = None, *, put: bool = True
) -> UploadedCheckpoint:
    """Finish a writer with fixed values."""
    return writer.finish(
        namespace=NAMESPACE,
        agent=AGENT,
        attempt=attempt(number),
        created=TIME,
        consistency="Application",
        parent=parent,
        put=put,
    )


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    """Return the keys in a store, sorted."""
    return sorted(info.key for info in store.list(prefix))


def pieces(parts: Iterable[bytes | memoryview]) -> bytes:
    """Join the parts."""
    return b"".join(bytes(part) for part in parts)
