"""Tests of the proofs that a copy of a database is consistent: what happens during the copy decides."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from savepoint.contract.vocabulary import Reason
from savepoint_sidecar.capture import database, database_unit
from savepoint_sidecar.capture.database_unit import DatabaseUnit, NotCopied


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_unit, "COPY_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "state").mkdir()
    handle = os.open(tmp_path / "state", os.O_RDONLY)
    yield handle
    os.close(handle)


def later() -> int:
    """Return a time at which every file of the test has been at rest for long."""
    return time.time_ns() + 10**10


def connect(tmp_path: Path, journal: str) -> sqlite3.Connection:
    db = sqlite3.connect(tmp_path / "state" / "db", isolation_level=None)
    db.execute(f"PRAGMA journal_mode={journal}")
    db.execute("PRAGMA cache_size=2")
    db.execute("CREATE TABLE IF NOT EXISTS t (n)")
    db.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 20)
    return db


def once(action: Callable[[], object], after: int = 0) -> Callable[[], None]:
    """Return a check that acts when it is called for the time ``after``: during the copy."""
    calls = iter(range(after + 1))

    def check() -> None:
        if next(calls, None) == after:
            action()

    return check


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_a_commit_between_database_and_log_is_noticed(tmp_path: Path, folder: int, journal: str) -> None:
    with closing(connect(tmp_path, journal)) as db:
        db.execute("BEGIN")
        db.execute("UPDATE t SET n = 'y'")

        def end() -> None:
            db.execute("COMMIT")
            if journal == "WAL":
                db.execute("PRAGMA wal_checkpoint(RESTART)")
                db.execute("INSERT INTO t VALUES (1)")  # overwrites the log's beginning

        check = once(end, after=2)  # the attempt, the database, then its log
        unit = DatabaseUnit(folder, "db", clock_ns=later, check=check)
        if journal == "WAL":
            assert unit.copy(tmp_path / "copy").is_backup
            with closing(sqlite3.connect(tmp_path / "copy")) as copy:
                assert copy.execute("SELECT count(*) FROM t WHERE n = 'y'").fetchone() == (20,)
                assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return
        with pytest.raises(NotCopied) as raised:
            unit.copy(tmp_path / "copy")
        assert raised.value.reason == Reason.DATABASE_BUSY
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_change_during_a_quiet_copy_is_noticed(tmp_path: Path, folder: int) -> None:
    with closing(connect(tmp_path, "DELETE")) as db:
        unit = DatabaseUnit(folder, "db", clock_ns=later, check=once(lambda: db.execute("DELETE FROM t"), after=1))
        with pytest.raises(NotCopied, match="written too often"):
            unit.copy(tmp_path / "copy")


def test_a_commit_within_one_tick_of_the_clock_is_noticed(tmp_path: Path, folder: int) -> None:
    path = tmp_path / "state" / "db"
    with closing(connect(tmp_path, "DELETE")) as db:
        before = path.stat()

        def commit() -> None:
            db.execute("UPDATE t SET n = zeroblob(3000)")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        assert DatabaseUnit(folder, "db").copy(tmp_path / "copy").logs == ()
        stats = DatabaseUnit._stats
        frozen = stats(DatabaseUnit(folder, "db"))
        unit = DatabaseUnit(folder, "db", clock_ns=lambda: before.st_mtime_ns, check=once(commit, after=1))
        unit._stats = lambda: frozen  # type: ignore[method-assign]
        with pytest.raises(NotCopied, match="written too often"):
            unit.copy(tmp_path / "copy2")


def test_a_database_that_is_replaced_during_the_copy_is_noticed(tmp_path: Path, folder: int) -> None:
    with closing(connect(tmp_path, "DELETE")) as db:
        db.execute("BEGIN")
        db.execute("UPDATE t SET n = 'y'")
        (tmp_path / "other").write_bytes(b"other")
        replace = once(lambda: (tmp_path / "other").rename(tmp_path / "state" / "db"), after=2)
        with pytest.raises(NotCopied):
            DatabaseUnit(folder, "db", clock_ns=later, check=replace).copy(tmp_path / "copy")


def test_an_error_in_the_check_removes_the_copy(tmp_path: Path, folder: int) -> None:
    class Ended(Exception):
        pass

    def end() -> None:
        raise Ended

    connect(tmp_path, "DELETE").close()
    with pytest.raises(Ended):
        DatabaseUnit(folder, "db", clock_ns=later, check=once(end, after=1)).copy(tmp_path / "copy")
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_link_is_not_followed(tmp_path: Path, folder: int) -> None:
    connect(tmp_path, "DELETE").close()
    (tmp_path / "state" / "link").symlink_to("db")
    with pytest.raises(FileNotFoundError), DatabaseUnit(folder, "link").open():
        pass
    with pytest.raises(NotCopied):
        DatabaseUnit(folder, "link", clock_ns=later).copy(tmp_path / "copy")


def test_a_record_that_is_written_while_the_journal_is_copied_is_cut_off(
    tmp_path: Path, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_unit, "_PIECE_BYTES", 1000)
    with closing(sqlite3.connect(tmp_path / "state" / "db", isolation_level=None)) as db:
        for each in ("journal_mode=PERSIST", "synchronous=OFF", "cache_size=2"):
            db.execute(f"PRAGMA {each}").fetchone()
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, pad TEXT)")
        db.executemany("INSERT INTO t VALUES (?, 1000001, ?)", [(number, "x" * 3900) for number in range(20)])
        for value in (1000002, 1000003):  # leaves records of both in the journal
            db.execute("BEGIN")
            db.execute("UPDATE t SET n = ?", (value,))
            db.execute("COMMIT")
        for moment in range(30, 50):  # at one of them, half of the next record has been copied
            db.execute("BEGIN")
            db.execute("UPDATE t SET n = 1000004 WHERE id < 7")
            calls = iter(range(1000))

            def write_on(moment: int = moment, calls: Iterator[int] = calls) -> None:
                if (tmp_path / "copy-journal").exists() and next(calls) == moment:
                    db.execute("UPDATE t SET n = 1000004 WHERE id < 12")

            unit = DatabaseUnit(folder, "db", clock_ns=later, check=write_on)
            assert unit.copy(tmp_path / "copy").logs == ("-journal",)
            db.execute("ROLLBACK")
            assert database.recover(tmp_path / "copy")
            with closing(sqlite3.connect(tmp_path / "copy")) as copy:
                assert copy.execute("SELECT n, count(*) FROM t GROUP BY n").fetchall() == [(1000003, 20)]
