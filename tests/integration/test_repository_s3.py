"""The whole path over real S3 servers: a pod writes by presigned URLs, an authority commits, a pod restores."""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from savepoint.errors import IntegrityError, Superseded
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Manifest, Parent
from savepoint.repository.format.tree import TreeDirectory, TreeFile
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.collect import collect
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository, open_store
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.wrapper import Retrying

from tests.fakes.repository_fixture import content
from tests.servers.s3 import S3Server

BUCKET = "savepoint-repository"
MIB = 1 << 20


class Urls:
    """Presigned URLs as the operator issues them: only for keys of this agent."""

    def __init__(self, presigner: Presigner) -> None:
        self._presigner = presigner

    def put_url(self, key: str) -> str:
        return self._presigner.presign_put(f"default/coder/{key}", 600)

    def get_url(self, key: str) -> str:
        return self._presigner.presign_get(f"default/coder/{key}", 600)

    def forget(self, key: str) -> None:
        """Do nothing: no URL is cached."""


@pytest.fixture
def config(s3_server: S3Server) -> S3Config:
    return s3_server.config(BUCKET)


@pytest.fixture
def repository(config: S3Config) -> Iterator[Repository]:
    with closing(S3Store(config)) as s3:
        store, master = Retrying(s3), MasterKey(secrets.token_bytes(32))
        open_store(store, "cluster", master)
        yield Repository.open_or_create(store, "default", "coder", master, now=datetime.now(UTC))


@pytest.fixture
def pod(config: S3Config) -> Iterator[PresignedStore]:
    with closing(PresignedStore(Urls(Presigner(config, lambda: datetime.now(UTC))))) as store:
        yield store


def now_text() -> str:
    return time_text(datetime.now(UTC))


def write(
    repository: Repository, pod: PresignedStore, epoch: int, parent: Manifest | None, weights: bytes, attempt: str
) -> tuple[lineage.UploadedCheckpoint, Manifest]:
    writer = CheckpointWriter(pod, pod, repository.key, epoch, parent)
    files = {f"d/f{number}": content(f"f{number}", 3000) for number in range(200)}
    stored = {path: writer.store_bytes(data, "Files") for path, data in files.items()}
    entries = [TreeFile(path, 0o644, 1, stored[path]) for path in sorted(files)]
    writer.add_blob("weights", "ModelWeights", MemorySource(weights))
    writer.add_tree("files", "Files", [TreeDirectory("d", 0o755, 1), *entries])
    offer = writer.finish(
        namespace="default",
        agent="coder",
        attempt=attempt,
        created=now_text(),
        consistency="Application",
        parent=None if parent is None else Parent(2, "00" * 32),
    )
    writer.commit()
    return offer, writer.manifest


def test_a_checkpoint_by_presigned_urls(repository: Repository, pod: PresignedStore, tmp_path: Path) -> None:
    chain = Chain(repository.store, "default", "coder")
    head = lineage.grant(chain, None, "pod-1", "node", now_text())
    weights = bytearray(content("weights", 40 * MIB))
    offer, parent = write(repository, pod, 1, None, bytes(weights), "a1")
    head = lineage.commit_checkpoint(
        repository, chain, head, offer, epoch=1, pod_uid="pod-1", time=now_text(), trigger="Interval"
    )
    weights[10 * MIB : 10 * MIB + 400_000] = content("change", 400_000)
    offer, manifest = write(repository, pod, 1, parent, bytes(weights), "a2")
    assert offer.uploaded_bytes <= len(weights) * 2 // 100
    head = lineage.commit_checkpoint(
        repository, chain, head, offer, epoch=1, pod_uid="pod-1", time=now_text(), trigger="Interval"
    )
    assert chain.head() == head
    with closing(CheckpointReader(pod, repository.key, manifest)) as reader:
        pieces: list[bytes] = []
        reader.read_blob_into(reader.components[0], pieces.append)
        assert b"".join(pieces) == weights
        restore_tree(reader, reader.components[1], tmp_path, durable=False)
        assert verify(reader) == []
    assert (tmp_path / "d/f7").read_bytes() == content("f7", 3000)
    assert len(os.listdir(tmp_path / "d")) == 200  # noqa: PTH208
    report = collect(repository, chain, head, keep=set(), grace_seconds=0, now=datetime.now(UTC))
    assert report.manifests <= 1
    with CheckpointReader(repository.store, repository.key, manifest) as kept:
        assert verify(kept) == []


def test_the_second_of_two_authorities_is_superseded(repository: Repository, pod: PresignedStore) -> None:
    chain = Chain(repository.store, "default", "coder")
    head = lineage.grant(chain, None, "pod-1", "node", now_text())
    one, _ = write(repository, pod, 1, None, b"one", "a1")
    two, _ = write(repository, pod, 1, None, b"two", "a2")
    lineage.commit_checkpoint(repository, chain, head, one, epoch=1, pod_uid="pod-1", time=now_text(), trigger="t")
    with pytest.raises(Superseded):
        lineage.commit_checkpoint(repository, chain, head, two, epoch=1, pod_uid="pod-1", time=now_text(), trigger="t")


def test_a_checkpoint_with_a_missing_pack_is_not_committed(repository: Repository, pod: PresignedStore) -> None:
    chain = Chain(repository.store, "default", "coder")
    head = lineage.grant(chain, None, "pod-1", "node", now_text())
    offer, _ = write(repository, pod, 1, None, b"one", "a1")
    repository.store.delete(f"packs/{offer.packs[0].name}")
    with pytest.raises(IntegrityError, match="not in the store"):
        lineage.commit_checkpoint(
            repository, chain, head, offer, epoch=1, pod_uid="pod-1", time=now_text(), trigger="Interval"
        )
    assert chain.head() == head
