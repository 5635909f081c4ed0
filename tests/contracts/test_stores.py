"""The contract tests of every store that needs no server, and of every wrapper."""

from pathlib import Path

import pytest
from savepoint.storage.directory import DirectoryStore
from savepoint.storage.store import ObjectStore
from savepoint.storage.wrapper import Metered, Prefixed, Retrying

from tests.contracts.store_contract import StoreContract
from tests.fakes.store import FaultyStore, MemoryStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


class TestFaultyStore(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return FaultyStore(MemoryStore())


class TestDirectoryStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return DirectoryStore(tmp_path / "store", create=True)


class TestPrefixed(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        below = MemoryStore()
        below.put_new("other/key", b"not ours")
        below.put_new("ours-not/key", b"not ours")
        return Prefixed(below, "ours/")


class TestMetered(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return Metered(MemoryStore())


class TestRetrying(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return Retrying(MemoryStore())
