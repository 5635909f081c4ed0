"""SQLite adapter: consistent copies of databases that another process may be writing to.

It recognises databases and copies them with SQLite's own backup; it never writes to the original.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from savepoint.errors import StageFull

MAGIC: Final = b"SQLite format 3\0"
COMPANIONS: Final = ("-wal", "-shm", "-journal")
BUSY_SECONDS: Final = 5.0
_WAL_VERSION: Final = 2


def is_database(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is an SQLite database."""
    return len(head) >= 100 and head.startswith(MAGIC)


def may_back_up(head: bytes, source: Path) -> bool:
    """Return whether SQLite can read the database without creating files beside it.

    It cannot for a cleanly closed database in WAL mode, which is therefore copied as a plain file.
    """
    wal_mode = _WAL_VERSION in (head[18], head[19])
    return not wal_mode or all(Path(f"{source}{suffix}").exists() for suffix in ("-wal", "-shm"))


def back_up(source: Path, target: Path) -> bool:
    """Copy the database to a new file; False if SQLite cannot read it now. StageFull if the copy does not fit."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    os.close(os.open(target, flags, 0o600))
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as original,
            closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            copy.execute("PRAGMA journal_mode=OFF")
            copy.execute("PRAGMA synchronous=OFF")
            original.backup(copy)
    except sqlite3.OperationalError as error:
        target.unlink(missing_ok=True)
        if "full" in str(error):
            raise StageFull(
                f"the stage has no room for a copy of database {source.name}; raise the size of the stage volume"
            ) from error
        return False
    except sqlite3.DatabaseError:
        target.unlink(missing_ok=True)
        return False
    return True
