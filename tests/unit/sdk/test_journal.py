"""The journal survives torn writes, gaps and a full volume."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint import NotEncodable
from savepoint.errors import StageFull
from savepoint.sdk.journal import RECORD_MAX_BYTES, FileJournal


@contextmanager
def volume_of(size: int) -> Iterator[None]:
    """Limit every file to ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def opened(folder: Path, number: int = 0) -> tuple[FileJournal, list[int]]:
    journal = FileJournal(folder)
    return journal, [record["n"] for record in journal.replay(number)]


def append(journal: FileJournal, *numbers: int) -> None:
    for number in numbers:
        journal.append({"n": number}, durable=number % 2 == 0)


def test_the_journal_after_the_checkpoint_is_replayed_in_order(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "1")
    append(journal, 1, 2)
    assert journal.rotate() == 1
    append(journal, 3)
    assert journal.rotate() == 2
    append(journal, 4)
    journal.close()
    for number, expected in ((0, [1, 2, 3, 4]), (1, [3, 4]), (2, [4])):
        journal, found = opened(tmp_path / "1", number)
        assert found == expected
        journal.close()


def test_a_number_is_kept_while_nothing_is_journaled(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    assert [journal.rotate(), journal.rotate()] == [0, 0]
    append(journal, 1)
    assert [journal.rotate(), journal.rotate()] == [1, 1]


def test_files_before_a_committed_checkpoint_are_deleted(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    append(journal, 1)
    first = journal.rotate()
    append(journal, 2)
    second = journal.rotate()
    append(journal, 3)
    journal.delete_below(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.log", "2.log"]
    journal.delete_below(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.log"]


def test_files_behind_a_gap_are_removed(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path, 5)
    append(journal, 1)
    journal.close()
    journal, found = opened(tmp_path, 3)
    assert found == []
    append(journal, 7)
    journal.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.log"]


@given(st.integers(0, 200), st.binary(max_size=12))
def test_a_torn_or_damaged_end_is_dropped(tmp_path_factory: pytest.TempPathFactory, keep: int, rubbish: bytes) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal, _ = opened(folder)
    append(journal, 1, 2, 3)
    journal.close()
    whole = (folder / "0.log").read_bytes()
    kept = whole[: min(keep, len(whole))]
    (folder / "0.log").write_bytes(kept + rubbish)
    journal, found = opened(folder)
    complete = len(kept) * 3 // len(whole)
    assert found[:complete] == [1, 2, 3][:complete]
    assert len(found) <= 3
    append(journal, 4)  # written to the next file, because nothing may follow a torn record
    journal.close()
    assert opened(folder)[1] == [*found, 4]


def test_a_full_volume_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    append(journal, 1)
    with volume_of((tmp_path / "0.log").stat().st_size + 5), pytest.raises(StageFull, match="stage volume larger"):
        append(journal, 2)
    append(journal, 3)
    journal.close()
    assert opened(tmp_path)[1] == [1, 3]


def test_a_result_that_is_too_large_is_refused(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path)
    with pytest.raises(NotEncodable, match="too large"):
        journal.append({"n": "x" * RECORD_MAX_BYTES}, durable=False)
