"""Loading a manifest from the store; tests of its content are in ``format/test_manifest.py``."""

import pytest
from savepoint.errors import IntegrityError, ObjectMissing, StoreUnavailable
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES, Manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.history.lineage import Offer
from savepoint.repository.read.manifest import load_manifest
from savepoint.storage.store import BlobReader

from tests.fakes.repository_fixture import AGENT, NAMESPACE, RepositoryFixture
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always


@pytest.fixture
def world() -> RepositoryFixture:
    return RepositoryFixture(MemoryStore())


def load(
    world: RepositoryFixture,
    offer: Offer,
    size: int | None = None,
    agent: str = AGENT,
    reader: BlobReader | None = None,
) -> Manifest:
    return load_manifest(
        reader or world.repository.store,
        world.repository.key,
        NAMESPACE,
        agent,
        name=offer.name,
        size=offer.size if size is None else size,
    )


def test_a_manifest_is_loaded(world: RepositoryFixture) -> None:
    offer = world.checkpoint(lambda writer: None)
    assert load(world, offer) == world.manifest
    assert world.repository.read_manifest(offer.name, offer.size) == world.manifest


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_size_than_its_record_says(world: RepositoryFixture, difference: int) -> None:
    offer = world.checkpoint(lambda writer: None)
    with pytest.raises(IntegrityError, match="its record says") as caught:
        load(world, offer, offer.size + difference)
    assert caught.value.object_key == manifest_key(offer.name)


def test_a_manifest_of_another_agent(world: RepositoryFixture) -> None:
    offer = world.checkpoint(lambda writer: None)
    with pytest.raises(IntegrityError) as caught:
        load(world, offer, agent="other")
    assert caught.value.object_key == manifest_key(offer.name)


def test_an_object_beyond_the_limit_is_not_read_whole(world: RepositoryFixture) -> None:
    offer = world.checkpoint(lambda writer: None)
    key = manifest_key(offer.name)
    world.repository.store.delete(key)
    world.repository.store.put_new(key, bytes(MAX_MANIFEST_BYTES + 1))
    with pytest.raises(IntegrityError) as caught:
        load(world, offer)
    assert caught.value.object_key.endswith(key)


def test_a_missing_manifest_and_an_unavailable_store(world: RepositoryFixture) -> None:
    offer = world.checkpoint(lambda writer: None)
    faulty = FaultyStore(MemoryStore(), always("get", Fault(StoreUnavailable("down"))))
    with pytest.raises(StoreUnavailable):
        load(world, offer, reader=faulty)
    world.repository.store.delete(manifest_key(offer.name))
    with pytest.raises(ObjectMissing):
        load(world, offer)
