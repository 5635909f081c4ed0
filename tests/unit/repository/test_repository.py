import json

import pytest
from savepoint.errors import FormatTooNew, IntegrityError, KeyMismatch, NotAdopted, ObjectMissing, StoreUnavailable
from savepoint.repository.format import canonical
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.repository import REPOSITORY_KEY, STORE_KEY, Repository, open_store, read_store

from tests.fakes.repository_fixture import MASTER, NOW, RepositoryFixture, SeededBytes
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always, at

OTHER = MasterKey(b"\1" * 32)
OURS = f"default/coder/{REPOSITORY_KEY}"


def opened(store: MemoryStore | FaultyStore, namespace: str = "default", agent: str = "coder") -> Repository:
    return Repository.open_or_create(store, namespace, agent, MASTER, now=NOW, random_bytes=SeededBytes())


class TestStore:
    def test_a_store_is_claimed_once(self) -> None:
        store = MemoryStore()
        open_store(store, "cluster", MASTER)
        identity = store.objects[STORE_KEY]
        open_store(store, "cluster", MASTER)
        assert store.objects[STORE_KEY] == identity
        assert json.loads(identity) == {"format": 1, "owner": "cluster", "keyCheck": MASTER.check}

    def test_a_store_of_another_cluster_or_key_is_refused(self) -> None:
        store = MemoryStore()
        open_store(store, "cluster", MASTER)
        with pytest.raises(NotAdopted, match="cluster"):
            open_store(store, "other", MASTER)
        with pytest.raises(NotAdopted):
            open_store(store, "other", OTHER)
        with pytest.raises(KeyMismatch):
            open_store(store, "cluster", OTHER)

    def test_reading_does_not_claim_the_store(self) -> None:
        store = FaultyStore(MemoryStore(), always("put_new", Fault(AssertionError("written"))))  # type: ignore[arg-type]
        with pytest.raises(ObjectMissing):
            read_store(store, MASTER)
        store.script = lambda _: None
        open_store(store, "cluster", MASTER)
        assert read_store(store, MASTER) == "cluster"
        with pytest.raises(KeyMismatch):
            read_store(store, OTHER)

    def test_only_one_of_two_owners_claims_the_store(self) -> None:
        store = MemoryStore()

        def first(call: object) -> None:
            faulty.script = lambda _: None
            open_store(store, "first", MASTER)

        faulty = FaultyStore(store)
        faulty.script = lambda call: first(call) if call.method == "put_new" else None
        with pytest.raises(NotAdopted, match="first"):
            open_store(faulty, "second", MASTER)

    def test_an_unavailable_store_is_not_claimed(self) -> None:
        store = MemoryStore()
        for position in (1, 2, 3):
            store.objects.clear()
            with pytest.raises(StoreUnavailable):
                open_store(FaultyStore(store, at({position: Fault(StoreUnavailable("down"))})), "cluster", MASTER)

    @pytest.mark.parametrize(
        ("identity", "error"),
        [
            (b'{"format":2}', FormatTooNew), (b"{}", IntegrityError), (b"", IntegrityError), (b"[]", IntegrityError),
            (b'{"format":1,"keyCheck":"x","owner":"cluster"}', IntegrityError),
            (b'{"alg":"none","format":1,"keyCheck":"' + b"a" * 64 + b'","owner":"cluster"}', IntegrityError),
            (bytes(5000), IntegrityError),
        ],
    )  # fmt: skip
    def test_invalid_identities_are_refused(self, identity: bytes, error: type[Exception]) -> None:
        store = MemoryStore()
        store.put_new(STORE_KEY, identity)
        with pytest.raises(error):
            open_store(store, "cluster", MASTER)
        assert store.objects[STORE_KEY] == identity


class TestRepository:
    def test_the_salt_is_created_once(self) -> None:
        store = MemoryStore()
        one = opened(store)
        two = Repository.open_or_create(store, "default", "coder", MASTER, now=NOW)
        assert one.key.expose() == two.key.expose()
        assert json.loads(store.objects[OURS])["agent"] == "coder"
        assert repr(one) == "Repository(default/coder)"

    def test_agents_do_not_share_a_key(self) -> None:
        store = MemoryStore()
        one = opened(store)
        two = Repository.open_or_create(store, "default", "other", MASTER, now=NOW)
        assert one.key.expose() != two.key.expose()

    def test_an_identity_of_another_agent_is_refused(self) -> None:
        store = MemoryStore()
        opened(store, agent="other")
        store.objects[OURS] = store.objects[f"default/other/{REPOSITORY_KEY}"]
        with pytest.raises(IntegrityError, match="belongs to default/other"):
            opened(store)

    def test_a_damaged_identity_is_refused(self) -> None:
        store = MemoryStore()
        store.objects[OURS] = b'{"format":1}'
        with pytest.raises(IntegrityError) as caught:
            opened(store)
        assert caught.value.object_key == OURS

    def test_open_does_not_create_a_salt(self) -> None:
        store = MemoryStore()
        with pytest.raises(ObjectMissing):
            Repository.open(store, "default", "coder", MASTER)
        assert not store.objects
        assert opened(store).key.expose() == Repository.open(store, "default", "coder", MASTER).key.expose()

    def test_an_unavailable_store_gets_no_new_salt(self) -> None:
        store = MemoryStore()
        opened(store)
        with pytest.raises(StoreUnavailable):
            opened(FaultyStore(store, always("get", Fault(StoreUnavailable("down")))))


def test_another_manifest_under_the_name_of_the_right_one_is_refused() -> None:
    """Another valid manifest is stored under this name."""
    repo = RepositoryFixture(MemoryStore())
    one = repo.checkpoint(lambda writer: None)
    two = repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", []))
    store = repo.repository.store
    content = store.get(f"manifests/{two.name}", max_bytes=1 << 20)
    store.delete(f"manifests/{one.name}")
    store.put_new(f"manifests/{one.name}", content)
    with pytest.raises(IntegrityError):
        repo.repository.read_manifest(one.name, len(content))
    assert repo.repository.read_manifest(two.name, two.size) == repo.manifest


def test_a_salt_copied_from_another_agent_does_not_give_its_key() -> None:
    """A user who can write to the bucket and run a pod in one namespace must not read agents of another."""
    store = MemoryStore()
    victim = opened(store, "payments", "ledger")
    opened(store, "mallory", "spy")
    theirs = json.loads(store.objects[f"payments/ledger/{REPOSITORY_KEY}"])
    ours = json.loads(store.objects[f"mallory/spy/{REPOSITORY_KEY}"]) | {"salt": theirs["salt"]}
    store.objects[f"mallory/spy/{REPOSITORY_KEY}"] = canonical.encode(ours)
    assert opened(store, "mallory", "spy").key.expose() != victim.key.expose()
