"""Checkpoints that a laptop's store keeps, from its chain and its manifests."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.manifest import Parent
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.history import lineage
from savepoint.repository.history.retention import RetentionRules
from savepoint.repository.write.source import MemorySource
from savepoint_sidecar.authority import local_retention
from savepoint_sidecar.authority.local_retention import LocalRetention

from tests.fakes.repository_fixture import NOW, TIME, RepositoryFixture
from tests.fakes.store import MemoryStore

MIB = 1 << 20
SOON = NOW + timedelta(minutes=1)


def values(size: int) -> Any:
    return lambda writer: writer.add_blob("notes", "Memory", MemorySource(bytes(size)))


@pytest.fixture
def repo() -> RepositoryFixture:
    return RepositoryFixture(MemoryStore())


def sequence(repo: RepositoryFixture) -> int:
    return repo.head.record.sequence


def make(repo: RepositoryFixture, *sizes: int) -> list[int]:
    """Commit checkpoints of these sizes; return their sequences."""
    found = []
    for size in sizes:
        repo.checkpoint(values(size))
        found.append(sequence(repo))
    return found


def kept(repo: RepositoryFixture, rules: RetentionRules, now: datetime = SOON) -> list[int]:
    return sorted(LocalRetention(repo.repository, repo.chain, rules).kept_sequences(repo.head, now))


def test_the_newest_checkpoints_are_kept(repo: RepositoryFixture) -> None:
    made = make(repo, 1, 2, 3, 4)
    assert kept(repo, RetentionRules(keep_last=2)) == made[-2:]
    assert kept(repo, RetentionRules(keep_last=9)) == made


def test_an_agent_without_checkpoints_keeps_nothing(repo: RepositoryFixture) -> None:
    assert kept(repo, RetentionRules()) == []


def test_the_checkpoint_before_a_loss_is_kept_until_the_state_has_grown_again(repo: RepositoryFixture) -> None:
    good, *_, last = make(repo, 4 * MIB, 1, 2, 3)
    rules = RetentionRules(keep_last=1)
    assert kept(repo, rules) == [good, last]
    (regrown,) = make(repo, 3 * MIB)
    assert kept(repo, rules) == [regrown]


def test_a_checkpoint_that_was_deleted_does_not_count(repo: RepositoryFixture) -> None:
    made = make(repo, 1, 2, 3)
    record = repo.chain.record(made[1])
    assert record.manifest is not None
    repo.repository.store.delete(manifest_key(record.manifest.name))
    assert kept(repo, RetentionRules(keep_last=9)) == [made[0], made[2]]


def test_a_manifest_that_was_never_committed_does_not_count(repo: RepositoryFixture) -> None:
    made = make(repo, 1, 2)
    repo.offer(values(3))
    assert kept(repo, RetentionRules(keep_last=1)) == made[-1:]


def test_a_record_far_from_its_parents_is_found(repo: RepositoryFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_retention, "NEAR", 2)
    made = make(repo, 1)
    for number in range(5):
        repo.grant(f"pod-{number + 2}")
    made += make(repo, 2)
    assert kept(repo, RetentionRules(keep_last=2)) == made


def test_only_new_checkpoints_are_read_again(repo: RepositoryFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(repo, 1, 2, 3)
    retention = LocalRetention(repo.repository, repo.chain, RetentionRules(keep_last=3))
    retention.kept_sequences(repo.head, SOON)
    made += make(repo, 4)
    read: list[str] = []
    monkeypatch.setattr(repo.repository, "read_manifest", lambda name, size: read.append(name))
    assert sorted(retention.kept_sequences(repo.head, SOON)) == made[-3:]
    assert len(read) == 1


def test_a_damaged_manifest_does_not_hide_its_checkpoint(repo: RepositoryFixture) -> None:
    made = make(repo, 1, 2)
    record = repo.chain.record(made[1])
    assert record.manifest is not None
    key = manifest_key(record.manifest.name)
    repo.repository.store.delete(key)
    repo.repository.store.put_new(key, b"x" * record.manifest.size)
    assert kept(repo, RetentionRules(keep_last=1)) == made[-1:]


def test_a_checkpoint_that_a_rollback_left_behind_counts_too(repo: RepositoryFixture) -> None:
    first, second = make(repo, 1, 2)
    target = repo.chain.record(first).manifest
    assert target is not None
    repo.head = lineage.rollback(repo.chain, repo.head, target, TIME)
    repo.manifest = repo.repository.read_manifest(target.name, target.size)
    repo.grant("pod-2")
    repo.parent = Parent(first, target.name)
    (third,) = make(repo, 3)
    assert kept(repo, RetentionRules(keep_last=9)) == [first, second, third]


def test_age_counts_from_the_record(repo: RepositoryFixture) -> None:
    made = make(repo, 1, 2)
    assert time_text(NOW) == TIME
    rules = RetentionRules(keep_last=5, max_age_seconds=3600)
    assert kept(repo, rules) == made
    assert kept(repo, rules, datetime(2027, 1, 1, tzinfo=UTC)) == made[-1:]
