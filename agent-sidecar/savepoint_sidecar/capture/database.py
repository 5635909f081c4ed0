"""The SQLite file format, as far as a capture needs it: what a database and its logs look like, and who locks it.

Nothing here takes a lock or writes to an agent's file: locks are queried (``F_OFD_GETLK``), never requested.
"""

import fcntl
import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Final

MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100
JOURNAL, WAL, SHM = "-journal", "-wal", "-shm"
COMPANIONS: Final = (WAL, SHM, JOURNAL)
LOGS: Final = (JOURNAL, WAL)
"""Companions that hold part of the state. The third one, ``-shm``, is an index that SQLite rebuilds."""

_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_JOURNAL_HEADER_BYTES: Final = 28
_RECORD_COUNT: Final = slice(8, 12)
_WAL_MAGIC: Final = (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))
_WAL_HEADER_BYTES: Final = 32
_PAGE_SIZES: Final = frozenset({1, *(1 << power for power in range(9, 16))})
_WAL_VERSION: Final = 2
_SHARED_FIRST: Final = 0x40000002
_SHARED_SIZE: Final = 510
_FLOCK: Final = struct.Struct("hhqqi0q")


def is_database(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is an SQLite database."""
    return len(head) >= HEADER_BYTES and head.startswith(MAGIC)


def has_valid_header(head: bytes) -> bool:
    """Return whether SQLite would accept this beginning of a database; it is unreadable otherwise."""
    return is_database(head) and int.from_bytes(head[16:18], "big") in _PAGE_SIZES


def counts_changes(head: bytes) -> bool:
    """Return whether each commit increments a number in this header: in every journal mode but WAL."""
    return has_valid_header(head) and _WAL_VERSION not in (head[18], head[19])


def log_identity(suffix: str, descriptor: int) -> bytes:
    """Return ``log_identity_of`` an open log."""
    return log_identity_of(suffix, os.pread(descriptor, _WAL_HEADER_BYTES, 0))


def log_identity_of(suffix: str, head: bytes) -> bytes:
    """Return what identifies the content of a log until SQLite discards it; empty if the log holds nothing.

    ``head`` is the beginning of the log. A rollback journal carries a random number for each transaction, and is
    removed, emptied or zeroed at the commit. A write-ahead log carries two numbers, the salts, that change whenever
    the log starts again from its beginning.
    """
    if suffix == WAL:
        return head[:_WAL_HEADER_BYTES] if len(head) >= _WAL_HEADER_BYTES and head[:4] in _WAL_MAGIC else b""
    if len(head) < _JOURNAL_HEADER_BYTES or not head.startswith(_JOURNAL_MAGIC):
        return b""
    return head[: _RECORD_COUNT.start] + head[_RECORD_COUNT.stop : _JOURNAL_HEADER_BYTES]


def with_record_count(head: bytes, other: bytes) -> bytes:
    """Return the beginning of a journal with the number of records that another one has: it may be written last."""
    return head[: _RECORD_COUNT.start] + other[_RECORD_COUNT] + head[_RECORD_COUNT.stop :]


def names_super_journal(descriptor: int) -> bool:
    """Return whether a rollback journal is part of a transaction over several attached databases.

    SQLite then undoes it only if the journal of the whole transaction, which it names, exists at its original path.
    """
    size = os.fstat(descriptor).st_size
    return size > _JOURNAL_HEADER_BYTES and os.pread(descriptor, 8, size - 8) == _JOURNAL_MAGIC


def is_locked_exclusively(descriptor: int) -> bool:
    """Return whether another process may be writing pages of the open database now. The lock is only queried."""
    query = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def recover(copy: Path) -> bool:
    """Let SQLite apply the logs beside a private copy of a database; return False if it cannot.

    Afterwards the copy is complete without them: unfinished transactions are undone, the write-ahead log is merged.
    """
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA user_version").fetchone()  # a read that parses no schema
    except sqlite3.Error:
        return False
    return not any(Path(f"{copy}{suffix}").exists() for suffix in COMPANIONS)
