"""Tests of what is known about SQLite's files: headers, logs, locks, and the recovery of a private copy."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from savepoint_sidecar.capture import database


@contextmanager
def opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def create(path: Path, journal: str = "DELETE") -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("CREATE TABLE t (n)")


@pytest.mark.parametrize(("journal", "counts"), [("DELETE", True), ("WAL", False)])
def test_a_database_is_recognised_by_its_content(tmp_path: Path, journal: str, counts: bool) -> None:
    create(tmp_path / "any.txt", journal)
    head = (tmp_path / "any.txt").read_bytes()[: database.HEADER_BYTES]
    assert database.is_database(head) and database.has_valid_header(head)
    assert database.counts_changes(head) == counts
    assert not database.is_database(head[:99]) and not database.is_database(b"x" * 100)
    impossible = head[:16] + b"\x03\x00" + head[18:]
    assert database.is_database(impossible) and not database.has_valid_header(impossible)


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST"])
def test_each_transaction_gives_its_journal_another_identity(tmp_path: Path, journal: str) -> None:
    path, log = tmp_path / "db", tmp_path / "db-journal"
    create(path)
    found = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("PRAGMA synchronous=OFF")
        for _ in range(2):
            db.execute("BEGIN")
            db.execute("INSERT INTO t VALUES (1)")
            with opened(log) as handle:
                found.append(database.log_identity(database.JOURNAL, handle))
                assert not database.names_super_journal(handle)
            db.execute("COMMIT")
            if log.exists():
                with opened(log) as handle:
                    assert database.log_identity(database.JOURNAL, handle) == b""
    assert all(found) and found[0] != found[1]


def test_a_journal_that_is_not_written_back_holds_nothing_yet(tmp_path: Path) -> None:
    create(tmp_path / "db")
    before = (tmp_path / "db").read_bytes()
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (1)")
        with opened(tmp_path / "db-journal") as handle:
            assert database.log_identity(database.JOURNAL, handle) == b""
        assert (tmp_path / "db").read_bytes() == before  # no page is written before the journal is


def test_a_write_ahead_log_keeps_its_identity_until_it_restarts(tmp_path: Path) -> None:
    path, log = tmp_path / "db", tmp_path / "db-wal"
    create(path, "WAL")

    def identity() -> bytes:
        with opened(log) as handle:
            return database.log_identity(database.WAL, handle)

    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO t VALUES (1)")
        first = identity()
        db.execute("INSERT INTO t VALUES (2)")
        assert first and identity() == first
        db.execute("PRAGMA wal_checkpoint(RESTART)")
        db.execute("INSERT INTO t VALUES (3)")
        assert identity() not in (b"", first)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert identity() == b""


def test_a_journal_over_several_databases_is_recognised(tmp_path: Path) -> None:
    log = tmp_path / "db-journal"
    log.write_bytes(bytes(600) + b"/data/db-mj0" + bytes(8) + bytes.fromhex("d9d505f920a163d7"))
    with opened(log) as handle:
        assert database.names_super_journal(handle)


def test_a_lock_of_another_process_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "db"
    create(path)
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for line in sys.stdin:\n    db.execute(line).fetchall(); print('done', flush=True)"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
        opened(path) as handle,
    ):
        seen = []
        for statement in ("BEGIN IMMEDIATE", "COMMIT", "BEGIN EXCLUSIVE", "ROLLBACK"):
            assert other.stdin is not None and other.stdout is not None
            other.stdin.write(f"{statement}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "done\n"
            seen.append(database.is_locked_exclusively(handle))
    assert seen == [False, False, True, False]


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_a_copy_with_its_log_becomes_one_file(tmp_path: Path, journal: str) -> None:
    path, copy = tmp_path / "db", tmp_path / "copy"
    create(path, journal)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("PRAGMA cache_size=2")
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 50)
        suffix = database.WAL if journal == "WAL" else database.JOURNAL
        for each in ("", suffix):
            Path(f"{copy}{each}").write_bytes(Path(f"{path}{each}").read_bytes())
    assert database.recover(copy)
    assert [each.name for each in tmp_path.glob("copy*")] == ["copy"]
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_copy_that_is_not_a_database_is_not_recovered(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(os.urandom(8192))
    Path(f"{copy}{database.JOURNAL}").write_bytes(bytes.fromhex("d9d505f920a163d7") + os.urandom(2000))
    assert not database.recover(copy)
