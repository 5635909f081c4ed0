"""Copies an SQLite database and its logs as one unit while other processes may write to it, without taking a lock.

These proofs are accepted. *Log kept*: the same rollback journal, or the same generation of the write-ahead log, was
there before the database was copied and after the log was copied. Every page that changed meanwhile is then in the
log, so SQLite's recovery yields the state before the open transaction, or after the last commit. *Quiet*: no stat of
the unit changed during the copy, and no process was writing pages without a journal. *Steady*: the database has no
log, and was read twice without a commit before, between or after (``_copy_steady``). *Backup*: for a write-ahead log
that restarts too often, SQLite's own backup reads in one transaction, in a child process; readers of such a database
do not block its writers. If none succeeds in time, the unit is not copied.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from savepoint.contract.vocabulary import Reason
from savepoint.errors import DISK_FULL_ERRNOS

from savepoint_sidecar.capture import database
from savepoint_sidecar.capture.file_table import RACY_NS, is_racy
from savepoint_sidecar.files.walk import Signature, signature_of

COPY_SECONDS: Final = 3.0
"""No further attempt at a copy begins after this time."""
BACKUP_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.0005
_PIECE_BYTES: Final = 4 << 20
_LOCKED: Final = (
    "a process holds an exclusive lock on it and keeps no journal on disk (locking_mode=EXCLUSIVE or an open "
    "transaction, with journal_mode MEMORY or OFF); use journal_mode=WAL"
)
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

_BACKUP: Final = """
import os, sqlite3, sys, urllib.parse
os.fchdir(int(sys.argv[1]))
source = sqlite3.connect(f"file:{urllib.parse.quote(sys.argv[2])}?mode=ro", uri=True, timeout=0)
target = sqlite3.connect(sys.argv[3], isolation_level=None)
target.execute("PRAGMA journal_mode=OFF")
target.execute("PRAGMA synchronous=OFF")
source.backup(target)
target.close()
os._exit(0)  # closing the source would ask for an exclusive lock for a moment
"""


class NotCopied(Exception):
    """The unit could not be copied; ``reason`` and the text say why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class UnitCopy:
    """A proven copy of a unit in the scratch folder."""

    path: Path
    logs: tuple[str, ...] = ()
    """Suffixes of the logs that were copied beside ``path`` because the database is incomplete without them."""
    is_backup: bool = False
    """True if the copy holds the content of the logs already."""
    needs_others: bool = False
    """True if SQLite recovers the copy only beside other files of the agent: the transaction spans databases."""


Stats = dict[str, Signature | None]
"""Signatures of the database (suffix "") and of its logs."""
Identities = dict[str, bytes]
"""The logs that hold something, each with what identifies its content."""


class DatabaseUnit:
    """One database in an open folder."""

    def __init__(
        self,
        folder: int,
        name: str,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        check: Callable[[], None] = lambda: None,
        window_ns: int = RACY_NS,
    ) -> None:
        """``check`` may raise to end the copy; within ``window_ns`` two changes may leave the same time stamp."""
        self._folder, self._name, self._clock_ns, self._check = folder, name, clock_ns, check
        self._window_ns = window_ns
        self._problem = "it is written too often to be read between two writes; use journal_mode=WAL"
        self._always_locked = True

    def copy(self, target: Path) -> UnitCopy:
        """Copy the unit to ``target`` and its logs beside it; NotCopied if that is not possible now.

        FileNotFoundError if the database no longer exists. The caller removes the copy.
        """
        deadline = time.monotonic() + COPY_SECONDS
        try:
            while True:
                self._check()
                copied = self._copy_once(target)
                if copied is not None:
                    return copied
                remove_copy(target)
                if time.monotonic() >= deadline:
                    break
                time.sleep(_PAUSE_SECONDS)
            if self._identities().get(database.WAL) and self._back_up(target):
                return UnitCopy(target, is_backup=True)
        except OSError as error:
            remove_copy(target)
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            raise NotCopied(
                Reason.STAGE_FULL, "the stage has no room for a copy of it; raise the size of the stage volume"
            ) from error
        except BaseException:
            remove_copy(target)
            raise
        raise NotCopied(Reason.DATABASE_BUSY, _LOCKED if self._always_locked else self._problem)

    @contextmanager
    def quiet(self) -> Iterator[Callable[[], bool] | None]:
        """Yield None unless the database is at rest and has no log, else a function to call after it was read.

        That function returns whether the database was at rest all the time, so that what was read is consistent.
        """
        started, before = self._clock_ns(), self._stats()
        if self._identities() or self._is_recent(before, started) or not self._is_settled(before):
            yield None
        else:
            yield lambda: self._stats() == before

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open the database file for reading. FileNotFoundError if it no longer exists."""
        with self._open("") as descriptor:
            if descriptor is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name)
            yield descriptor

    def is_settled(self) -> bool:
        """Return whether SQLite could recover the unit from its files as they are now: see the reason DatabaseBusy."""
        return bool(self._identities()) or self._is_settled(self._stats())

    def _copy_once(self, target: Path) -> UnitCopy | None:
        """Copy once; return None if nothing proves that the copy is consistent."""
        started, before = self._clock_ns(), self._stats()
        logs = self._identities()
        recent = self._is_recent(before, started)
        if not logs:
            settled = self._is_settled(before)
            self._always_locked &= not settled
            if not settled or not (self._copy_steady if recent else self._copy_quiet)(target, before, logs):
                return None
            return UnitCopy(target)
        self._always_locked = False
        if len(logs) > 1 or self._names_super_journal():
            self._problem = "a transaction over several attached databases is unfinished"
            if recent or not self._copy_quiet(target, before, logs):
                return None
            return UnitCopy(target, tuple(logs), needs_others=True)

        def is_kept() -> bool:
            return self._identities() == logs and _inode(self._stats()) == _inode(before)

        if not self._copy_files(logs, target, is_kept) or self._names_super_journal():
            return None
        if database.JOURNAL in logs:
            self._cut_unfinished(Path(f"{target}{database.JOURNAL}"))
        return UnitCopy(target, tuple(logs)) if is_kept() else None

    def _copy_quiet(self, target: Path, before: Stats, logs: Identities) -> bool:
        """Copy the unit; return whether none of its files changed meanwhile."""
        return self._copy_files(logs, target, lambda: self._stats() == before)

    def _copy_steady(self, target: Path, before: Stats, logs: Identities) -> bool:
        """Copy a database without logs and compare the copy; return whether no transaction came between.

        For a database whose stamps are too recent to prove that. Before, between and after the two passes no process
        holds the lock under which pages are written, and the counter that each commit increments stays the same.
        """

        def is_free() -> bool:
            return not self._identities() and self._stats() == before and not self._is_locked()

        with self.open() as source:
            head = os.pread(source, database.HEADER_BYTES, 0)
            if not database.counts_changes(head) or not is_free():
                return False
            if not self._copy_files(logs, target, is_free) or not _equals(source, target):
                return False
            return is_free() and os.pread(source, database.HEADER_BYTES, 0) == head and _head(target) == head

    def _cut_unfinished(self, copy: Path) -> None:
        """Cut the copy of a journal where the journal differs from it now: what was being written when it was copied.

        SQLite's own checksum samples a page, so it accepts a record that is half of this transaction and half of what
        an older one left there. Records that the copied database needs were complete before, and are earlier.
        """
        with self._open(database.JOURNAL) as journal, copy.open("r+b", buffering=0) as file:
            offset = 0
            while journal is not None and (piece := file.read(_PIECE_BYTES)):
                now = os.pread(journal, len(piece), offset)
                if offset == 0:
                    now = database.with_record_count(now, piece)
                if now != piece:
                    file.truncate(offset + _common_length(now, piece))
                    return
                offset += len(piece)

    def _copy_files(self, logs: Identities, target: Path, may_continue: Callable[[], bool]) -> bool:
        return all(self._copy_file(suffix, target, may_continue) for suffix in ("", *logs)) and may_continue()

    def _copy_file(self, suffix: str, target: Path, may_continue: Callable[[], bool]) -> bool:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._open(suffix) as source:
            if source is None:
                return False
            copy = os.open(f"{target}{suffix}", flags, 0o600)
            try:
                size, done = os.fstat(source).st_size, 0
                while done < size:
                    self._check()
                    count = os.sendfile(copy, source, done, min(_PIECE_BYTES, size - done))
                    if count == 0:
                        break
                    done += count
                    if not may_continue():
                        return False
            finally:
                os.close(copy)
        return True

    def _back_up(self, target: Path) -> bool:
        command = [sys.executable, "-I", "-S", "-c", _BACKUP, str(self._folder), self._name, str(target)]
        try:
            with subprocess.Popen(  # noqa: S603 - this Python, no shell
                command, pass_fds=(self._folder,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as process:  # fmt: skip
                try:
                    return self._wait(process)
                finally:
                    process.kill()
        except OSError as error:
            self._problem = f"its write-ahead log restarts too often, and its backup cannot start: {error.strerror}"
            return False

    def _wait(self, process: "subprocess.Popen[bytes]") -> bool:
        deadline = time.monotonic() + BACKUP_SECONDS
        while time.monotonic() < deadline:
            self._check()
            with suppress(subprocess.TimeoutExpired):
                if process.wait(0.1) == 0:
                    return True
                break
        self._problem = "its write-ahead log restarts too often, and SQLite's backup did not succeed"
        return False

    def _stats(self) -> Stats:
        """Return the signatures of the unit. FileNotFoundError if there is no database of this name any more."""
        found: Stats = {"": signature_of(os.stat(self._name, dir_fd=self._folder, follow_symlinks=False))}
        for suffix in database.LOGS:
            try:
                status = os.stat(self._name + suffix, dir_fd=self._folder, follow_symlinks=False)
                found[suffix] = signature_of(status)
            except FileNotFoundError:
                found[suffix] = None
        return found

    def _identities(self) -> Identities:
        """Return the logs that hold something now, with what identifies their content."""
        found = {}
        for suffix in database.LOGS:
            with self._open(suffix) as descriptor:
                identity = database.log_identity(suffix, descriptor) if descriptor is not None else b""
            if identity:
                found[suffix] = identity
        return found

    def _is_settled(self, stats: Stats) -> bool:
        """Return whether the database holds no half of a transaction, provided that its logs are empty.

        Under an exclusive lock, the only sign of that is an emptied log which is as new as the database: the commit
        empties it after the last page was written. With a journal in memory, or none, there is no sign.
        """
        if not self._is_locked():
            return True
        main = stats[""]
        assert main is not None
        logs = [each for suffix in database.LOGS if (each := stats[suffix]) is not None]
        return any(each.mtime_ns >= main.mtime_ns for each in logs)

    def _is_recent(self, stats: Stats, now_ns: int) -> bool:
        """Return whether a file of the unit changed so recently that another change might leave the same stat."""
        return any(is_racy(each, now_ns, self._window_ns) for each in stats.values() if each is not None)

    def _is_locked(self) -> bool:
        with self._open("") as descriptor:
            return descriptor is not None and database.is_locked_exclusively(descriptor)

    def _names_super_journal(self) -> bool:
        with self._open(database.JOURNAL) as descriptor:
            return descriptor is not None and database.names_super_journal(descriptor)

    @contextmanager
    def _open(self, suffix: str) -> Iterator[int | None]:
        try:
            descriptor = os.open(self._name + suffix, _OPEN, dir_fd=self._folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                raise
            descriptor = None
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)


def remove_copy(target: Path) -> None:
    """Remove a copy and everything that SQLite may have created beside it."""
    for suffix in ("", *database.COMPANIONS):
        Path(f"{target}{suffix}").unlink(missing_ok=True)


def _equals(source: int, copy: Path) -> bool:
    """Return whether an open file still has the content of its copy."""
    with copy.open("rb", buffering=0) as file:
        offset = 0
        while piece := file.read(_PIECE_BYTES):
            if os.pread(source, len(piece), offset) != piece:
                return False
            offset += len(piece)
    return os.fstat(source).st_size == offset


def _common_length(one: bytes, other: bytes) -> int:
    """Return how many bytes at the beginning of two different texts are equal."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _head(copy: Path) -> bytes:
    with copy.open("rb", buffering=0) as file:
        return file.read(database.HEADER_BYTES)


def _inode(stats: Stats) -> int:
    main = stats[""]
    assert main is not None
    return main.inode
