import contextlib
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.errors import FormatTooNew, IntegrityError
from savepoint.repository.format import canonical, commit
from savepoint.repository.format.commit import ChainRecord, CommitRecord, ManifestName

from tests.fakes.repository_fixture import TIME

MANIFEST = ManifestName("ab" * 32, 1000)


def granted(head: ChainRecord | None = None) -> ChainRecord:
    return commit.head_of(commit.grant(head, "default", "coder", pod_uid="pod", node="node", time=TIME))


def checkpointed(head: ChainRecord, name: str = "1") -> ChainRecord:
    record = commit.checkpoint(head, attempt=name, manifest=MANIFEST, time=TIME, trigger="Interval")
    return commit.head_of(record)


def test_records_survive_a_round_trip() -> None:
    first = granted()
    second = checkpointed(first)
    for record in (
        first.record,
        second.record,
        commit.rollback(second, attempt=None, manifest=None, time=TIME),
        commit.completed(second, time=TIME),
    ):
        content = commit.encode(record)
        assert commit.decode(content, "x") == record
        assert len(content) < 600


def test_each_record_continues_the_one_before() -> None:
    grant = granted()
    assert (grant.record.sequence, grant.record.epoch, grant.record.number) == (1, 1, 0)
    assert grant.record.previous is None
    assert grant.record.manifest is None
    one = checkpointed(grant)
    assert one.record.name == "coder-1"
    assert one.record.previous == grant.digest
    again = granted(one)
    assert (again.record.sequence, again.record.epoch, again.record.number) == (3, 2, 1)
    assert again.record.manifest == MANIFEST
    back = commit.head_of(commit.rollback(again, attempt="r", manifest=None, time=TIME))
    assert back.record.manifest is None
    two = checkpointed(back)
    done = commit.head_of(commit.completed(two, time=TIME))
    assert done.record.manifest == MANIFEST
    fresh = granted(done)
    assert fresh.record.manifest is None
    assert (fresh.record.epoch, fresh.record.number) == (3, 2)
    history = [None, grant, one, again, back, two, done, fresh]
    for before, after in pairwise(history):
        assert after is not None
        assert commit.link_problem(after.record, before) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 4}, {"previous": None}, {"previous": "ab" * 32}, {"epoch": 2}, {"number": 1}, {"agent": "other"},
        {"namespace": "other"}, {"manifest": None}, {"attempt": None}, {"kind": "grant"}, {"kind": "completed"},
        {"kind": "rollback"},
    ],
)  # fmt: skip
def test_a_record_that_does_not_continue_the_one_before_has_a_problem(change: dict[str, Any]) -> None:
    head = checkpointed(granted())
    record = checkpointed(head, "2").record
    assert commit.link_problem(record, head) == ""
    assert commit.link_problem(replace(record, **change), head) != ""


def test_a_completion_or_first_record_that_breaks_the_rules_has_a_problem() -> None:
    done = commit.head_of(commit.completed(checkpointed(granted()), time=TIME))
    fresh = granted(done).record
    assert "a grant" in commit.link_problem(replace(fresh, manifest=MANIFEST), done)
    ended = commit.completed(checkpointed(granted()), time=TIME)
    assert "a completion" in commit.link_problem(replace(ended, manifest=None), checkpointed(granted()))
    assert commit.link_problem(replace(granted().record, epoch=2), None) != ""
    assert commit.link_problem(replace(granted().record, kind="rollback", epoch=0), None) != ""
    assert commit.link_problem(replace(granted().record, kind="completed", epoch=0), None) != ""


def edited(**change: Any) -> bytes:
    value = json.loads(commit.encode(checkpointed(granted()).record))
    for name, new in change.items():
        if new is ...:
            del value[name]
        else:
            value[name] = new
    return canonical.encode(value)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "merge"}, {"sequence": 0}, {"epoch": 0}, {"number": -1}, {"previous": "x"}, {"previous": 1},
        {"time": "now"},
        {"podUID": 1}, {"attempt": 1}, {"manifest": {"name": "ab" * 32}}, {"manifest": {"name": "../x", "size": 1}},
        {"manifest": {"name": "ab" * 32, "size": 1, "x": 1}}, {"manifest": {"name": "ab" * 32, "size": 1 << 21}},
        {"manifest": []}, {"signature": "x"}, {"trigger": ...}, {"previous": ...}, {"attempt": ...}, {"manifest": ...},
        {"format": ...}, {"format": "1"},
    ],
)  # fmt: skip
def test_invalid_records_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError) as caught:
        commit.decode(edited(**change), "commits/x")
    assert caught.value.object_key == "commits/x"


def test_a_newer_format_is_refused_as_too_new() -> None:
    with pytest.raises(FormatTooNew):
        commit.decode(edited(format=2, more=True), "x")


def test_a_record_is_small() -> None:
    record = checkpointed(granted()).record
    with pytest.raises(ValueError, match="4096"):
        commit.encode(replace(record, trigger="x" * 4096))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    with contextlib.suppress(IntegrityError, FormatTooNew):
        assert isinstance(commit.decode(content, "x"), CommitRecord)


@pytest.mark.parametrize("field", ["sequence", "epoch", "number", "run"])
def test_a_forged_count_is_refused(field: str) -> None:
    """Anyone who can write to the bucket can add a record, and the next record must still be valid."""
    raw = json.loads(commit.encode(checkpointed(granted()).record))
    for forged in (commit.MAX_COUNT + 1, 2**63):
        with pytest.raises(IntegrityError, match=field):
            commit.decode(canonical.encode(raw | {field: forged}), "x")


def test_a_forged_number_does_not_use_up_the_numbers() -> None:
    head = granted()
    forged = commit.checkpoint(head, attempt="2", manifest=MANIFEST, time=TIME, trigger="T", number=commit.MAX_COUNT)
    assert "number or name" in commit.link_problem(forged, head)
    far = commit.checkpoint(head, attempt="2", manifest=MANIFEST, time=TIME, trigger="T", number=commit.MAX_GAP)
    assert commit.link_problem(far, head) == ""
