"""Loading a manifest from the store; tests of its content are in ``format/test_manifest.py``."""

import pytest
from savepoint.errors import IntegrityError, ObjectMissing, StoreUnavailable
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES, Manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.history.lineage import UploadedCheckpoint
from savepoint.repository.read.manifest import load_manifest
from savepoint.storage.store import BlobReader

from tests.fakes.repository_fixture import AGENT, NAMESPACE, RepositoryFixture
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always


@pytest.fixture
def repo() -> RepositoryFixture:
    return RepositoryFixture(MemoryStore())


def load(
    repo: RepositoryFixture,
    offer: UploadedCheckpoint,
    size: int | None = None,
    agent: str = AGENT,
    reader: BlobReader | None = None,
) -> Manifest:
    return load_manifest(
        reader or repo.repository.store,
        repo.repository.key,
        NAMESPACE,
        agent,
        name=offer.name,
        size=offer.size if size is None else size,
    )


def test_a_manifest_is_loaded(repo: RepositoryFixture) -> None:
    offer = repo.checkpoint(lambda writer: None)
    assert load(repo, offer) == repo.manifest
    assert repo.repository.read_manifest(offer.name, offer.size) == repo.manifest


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_manifest_of_another_size_than_its_record_says_is_refused(repo: RepositoryFixture, difference: int) -> None:
    offer = repo.checkpoint(lambda writer: None)
    with pytest.raises(IntegrityError, match="its record says") as caught:
        load(repo, offer, offer.size + difference)
    assert caught.value.object_key == manifest_key(offer.name)


def test_a_manifest_of_another_agent_is_refused(repo: RepositoryFixture) -> None:
    offer = repo.checkpoint(lambda writer: None)
    with pytest.raises(IntegrityError) as caught:
        load(repo, offer, agent="other")
    assert caught.value.object_key == manifest_key(offer.name)


def test_an_object_beyond_the_limit_is_not_read_whole(repo: RepositoryFixture) -> None:
    offer = repo.checkpoint(lambda writer: None)
    key = manifest_key(offer.name)
    repo.repository.store.delete(key)
    repo.repository.store.put_new(key, bytes(MAX_MANIFEST_BYTES + 1))
    with pytest.raises(IntegrityError) as caught:
        load(repo, offer)
    assert caught.value.object_key.endswith(key)


def test_a_missing_manifest_differs_from_an_unavailable_store(repo: RepositoryFixture) -> None:
    offer = repo.checkpoint(lambda writer: None)
    faulty = FaultyStore(MemoryStore(), always("get", Fault(StoreUnavailable("down"))))
    with pytest.raises(StoreUnavailable):
        load(repo, offer, reader=faulty)
    repo.repository.store.delete(manifest_key(offer.name))
    with pytest.raises(ObjectMissing):
        load(repo, offer)
