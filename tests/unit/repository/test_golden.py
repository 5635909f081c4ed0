"""The golden repository of format 1 stays readable: by the product, and by a second reader written from the page."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from savepoint.repository.format import canonical, commit
from savepoint.repository.format.manifest import Manifest, seal_manifest
from savepoint.repository.format.object_keys import commit_key, manifest_key
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository, open_store
from savepoint.storage.directory import DirectoryStore

from tests.fakes.repository_fixture import MASTER, NOW
from tests.golden.make import CHANGED, DOCUMENTS, FILES, LARGE_BYTES, TIME_NS, WEIGHTS
from tests.golden.second_reader import SecondReader

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1"
HEAD_DIGEST = "24bb600bebf642e28ba6405215af9d12f722e6c7d7c64a58045973ca9494ef23"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """Copy the golden repository, so that no test can change it."""
    shutil.copytree(GOLDEN, tmp_path / "store")
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def repository(store: DirectoryStore) -> Repository:
    open_store(store, "cluster", MASTER)
    return Repository.open_or_create(store, "default", "coder", MASTER, now=NOW)


@pytest.fixture
def chain(repository: Repository) -> Chain:
    return Chain(repository.store, "default", "coder")


def manifest_at(repository: Repository, chain: Chain, sequence: int) -> Manifest:
    name = chain.record(sequence).manifest
    assert name is not None
    return repository.read_manifest(name.name, name.size)


def test_the_chain_is_read(chain: Chain) -> None:
    head = chain.head()
    assert head is not None
    assert head.digest == HEAD_DIGEST
    assert [each.record.kind for each in chain.back(head, 99)][::-1] == [
        "grant", "checkpoint", "grant", "checkpoint", "rollback", "grant", "completed",
    ]  # fmt: skip
    assert (head.record.epoch, head.record.number, head.record.name, head.record.run) == (3, 2, "coder-2", 1)


def test_every_object_can_be_rewritten_byte_for_byte(repository: Repository, chain: Chain) -> None:
    store = repository.store
    for sequence in range(1, 8):
        content = store.get(commit_key(sequence), max_bytes=4096)
        assert commit.encode(commit.decode(content, "x")) == content
    for sequence in (2, 4):
        record = chain.record(sequence)
        assert record.manifest is not None
        content = store.get(manifest_key(record.manifest.name), max_bytes=1 << 20)
        manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
        assert seal_manifest(manifest, repository.key, content[8:20]) == content
    [key] = lineage.find_pending(repository, 3)
    content = store.get(key, max_bytes=4096)
    pending = lineage.pending_of(content, key)
    assert (pending.epoch, pending.pod_uid, pending.completed, pending.manifest) == (3, "pod-3", True, b"")
    assert lineage.pending_bytes(pending) == content
    for name in ("savepoint.json", "default/coder/repository.json"):
        raw = (GOLDEN / name).read_bytes()
        assert canonical.encode(canonical.decode_canonical(raw, name)) == raw


@pytest.mark.parametrize(("sequence", "documents"), [(2, DOCUMENTS), (4, CHANGED)])
def test_values_are_read_and_verified(
    repository: Repository, chain: Chain, sequence: int, documents: dict[str, bytes]
) -> None:
    manifest = manifest_at(repository, chain, sequence)
    with CheckpointReader(repository.store, repository.key, manifest) as reader:
        assert verify(reader) == []
        found = reader.read_entries(reader.components[0])
        assert {name: reader.read_content(each.content) for name, each in found.items()} == documents
        assert found["blob"].meta == {"dtype": "uint8", "shape": [10, 100]}
        assert [each.encoding for each in found.values()] == ["json", "bytes", "tensor"]
        pieces: list[bytes] = []
        reader.read_blob_into(reader.components[1], pieces.append)
        assert b"".join(pieces) == WEIGHTS
        assert reader.components[1].architecture_bound
    assert (manifest.parent is None) == (sequence == 2)


def test_file_trees_are_restored(repository: Repository, chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with CheckpointReader(repository.store, repository.key, manifest_at(repository, chain, 2)) as reader:
        component = reader.manifest.component("workspace")
        assert component is not None
        restore_tree(reader, component, tmp_path / "target", durable=False)
        models = reader.manifest.component("models")
        assert models is not None
        [zeros] = reader.tree_entries(models)
        assert isinstance(zeros, TreeFile)
        assert sum(ref.length for ref in reader.content_chunks(zeros.content)) == LARGE_BYTES
    for path, data in FILES.items():
        assert (tmp_path / "target" / path).read_bytes() == data
    assert (tmp_path / "target/link").readlink() == Path("dir/script")
    assert (tmp_path / "target/dir").stat().st_mode & 0o7777 == 0o750
    assert (tmp_path / "target/a.txt").stat().st_mtime_ns == TIME_NS
    assert (tmp_path / "target/ümläut").stat().st_mtime_ns == -1


def test_a_second_reader_agrees(repository: Repository, chain: Chain) -> None:
    second = SecondReader(GOLDEN, "default", "coder", bytes(range(32)))
    records = second.records()
    assert [record["kind"] for record in records] == [chain.record(n).kind for n in range(1, 8)]
    one: dict[str, Any] = second.manifest(records[1]["manifest"]["name"])
    found = {component["name"]: second.component(component) for component in one["components"]}
    assert {line["name"]: data for line, data in found["documents"]} == DOCUMENTS
    assert found["weights"] == WEIGHTS
    assert {line["path"]: data for line, data in found["workspace"] if data is not None} == FILES
    assert [(line["path"], data) for line, data in found["models"]] == [("zeros", bytes(LARGE_BYTES))]
    two = second.manifest(records[3]["manifest"]["name"])
    assert {line["name"]: data for line, data in second.component(two["components"][0])} == CHANGED
    assert {pack["name"] for pack in two["packs"]} >= {pack["name"] for pack in one["packs"]}
