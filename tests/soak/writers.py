"""Processes that write while a checkpoint is taken, or are killed meanwhile. Each tells a witness what it did.

The witness is a file outside of the tree, written before and after each step, so that it outlives ``kill -9``.
"""

import json
import mmap
import multiprocessing
import os
import random
import signal
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from tests.soak.witness import digest

JOURNALS: Final = ("DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL", "OFF")
WITHOUT_JOURNAL: Final = ("MEMORY", "OFF")
LOCKINGS: Final = ("NORMAL", "EXCLUSIVE")
PHASES: Final = ("closed", "idle", "open", "killed", "killed in a transaction", "writing")
ACCOUNTS: Final = 120
T = TypeVar("T")
_COUNTS: Final = struct.Struct("<qq")
_FORKS: Final = multiprocessing.get_context("forkserver")


class Writer:
    """A process of the agent."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        self.ready, self.stop = _FORKS.Event(), _FORKS.Event()
        self._process: ForkServerProcess = _FORKS.Process(target=target, args=(self.ready, self.stop, *arguments))
        self._process.start()
        if not self.ready.wait(60):
            raise TimeoutError("a writer of the soak did not start")

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def finish(self) -> None:
        """Let it finish what it does, and end."""
        self.stop.set()
        self._process.join()


@dataclass(frozen=True)
class Database:
    """A database in the tree, its modes, and the phase in which its writer is when a checkpoint is taken."""

    path: Path
    witness: Path
    journal: str
    locking: str
    phase: str

    @property
    def may_be_damaged(self) -> bool:
        """True if SQLite itself cannot undo what the kill interrupted."""
        return self.phase == "killed in a transaction" and self.journal in WITHOUT_JOURNAL

    @property
    def may_be_refused(self) -> bool:
        """True if nothing on disk shows whether half of a transaction is in it."""
        is_open = self.phase == "open" or (self.phase == "idle" and self.locking == "EXCLUSIVE")
        return self.journal in WITHOUT_JOURNAL and is_open

    def transactions(self) -> tuple[int, int]:
        """Return the numbers of transactions that were committed, and begun, until now."""
        committed, begun = _COUNTS.unpack(self.witness.read_bytes())
        return committed, begun

    def start(self) -> Writer:
        """Start its writer, and return when it is in its phase."""
        writer = Writer(write_database, self, random.randrange(2**32))
        if self.phase.startswith("killed"):
            writer.kill()
        elif self.phase == "closed":
            writer.finish()
        return writer


def write_database(ready: Event, stop: Event, database: Database, seed: int) -> None:
    """Commit transactions, then do what the phase says."""
    with closing(sqlite3.connect(database.path, timeout=0, isolation_level=None)) as connection:
        for each in (f"journal_mode={database.journal}", f"locking_mode={database.locking}", "synchronous=OFF",
                     "cache_size=4", f"page_size={random.Random(seed).choice((512, 4096))}"):  # fmt: skip
            connection.execute(f"PRAGMA {each}").fetchone()
        transact = _Transactions(connection, database)
        for _ in range(3):
            transact.commit()
        if database.phase in ("open", "killed in a transaction"):
            transact.begin()
        ready.set()
        while database.phase == "writing" and not stop.is_set():
            transact.commit()
            time.sleep(0.002)
        stop.wait()
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class _Transactions:
    def __init__(self, connection: sqlite3.Connection, database: Database) -> None:
        self._connection = connection
        self._committed = self._begun = 0
        self._witness = os.open(database.witness, os.O_RDWR | os.O_CREAT)
        self._tell()
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, pad BLOB)")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE ledger (n INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO account VALUES (?, 100, randomblob(300))", ((i,) for i in range(ACCOUNTS)))
        connection.execute("COMMIT")

    def _tell(self) -> None:
        os.pwrite(self._witness, _COUNTS.pack(self._committed, self._begun), 0)

    def begin(self) -> None:
        self._begun += 1
        self._tell()
        n = self._begun
        self._connection.execute("BEGIN")
        self._connection.execute("INSERT INTO ledger VALUES (?)", (n,))
        change = "UPDATE account SET balance = balance + ?, pad = randomblob(300) WHERE id % 6 = ? AND id % 2 = ?"
        self._connection.execute(change, (1, n % 6, n % 2))
        self._connection.execute(
            "UPDATE account SET balance = balance - 1 WHERE id % 6 = ? AND id % 2 = ?", (n % 6, n % 2)
        )

    def commit(self) -> None:
        self.begin()
        self._connection.execute("COMMIT")
        self._committed += 1
        self._tell()


def transactions_in(path: Path) -> int:
    """Return how many transactions a database holds. AssertionError or sqlite3.Error if it is not consistent."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), "it is not intact"
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "ledger" not in tables:
            return 0
        balance, accounts = connection.execute("SELECT sum(balance), count(*) FROM account").fetchone()
        assert (balance, accounts) == (100 * ACCOUNTS, ACCOUNTS), f"it holds half of a transaction: {balance}"
        numbers = [n for (n,) in connection.execute("SELECT n FROM ledger ORDER BY n")]
        assert numbers == list(range(1, len(numbers) + 1)), f"it lost transactions: {numbers}"
        return len(numbers)


@dataclass
class History:
    """All states of the files that a busy writer changed, by file and by path."""

    folder: Path
    """Holds each content, named by its digest."""
    is_unfinished: bool = False
    """True if the writer was killed before it reported that its last change was made: half of it may have been."""
    contents: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)
    """For each file, its contents with the times before and after the change to it."""
    paths: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    """For each path, the file there (-1 for none) with the times before and after the change to it."""

    @classmethod
    def read(cls, path: Path) -> "History":
        """Read what the writer reported: each change before it was made, then when it was."""
        history = cls(Path(f"{path}.contents"))
        lines = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        for at, line in enumerate(lines):
            if isinstance(line, int):
                continue
            before, changes, places = line
            history.is_unfinished = at + 1 == len(lines)
            after = sys.maxsize if history.is_unfinished else lines[at + 1]
            for file, content in changes:
                history.contents.setdefault(file, []).append((before, after, content))
            for place, file in places:
                history.paths.setdefault(place, []).append((before, after, file))
        return history

    def files_at(self, path: str, begin: int, end: int) -> set[int]:
        """Return the files that may have been at a path at a time in between; -1 if it may have been free."""
        events = self.paths.get(path, [])
        return set(_between([(0, 0, -1), *events], begin, end))

    def describe(self, path: str, content: str, begin: int, end: int) -> list[str]:
        """Return what is known of a path and a content, with times in milliseconds since the capture began."""

        def shown(events: Sequence[tuple[int, int, object]]) -> str:
            times = [f"{value}@{(at - begin) / 1e6:.2f}..{(after - begin) / 1e6:.2f}" for at, after, value in events]
            return ", ".join(times[-30:])

        known = [f"file {file} held it: {shown([e for e in events if e[2] == content])}"
                 for file, events in self.contents.items() if any(event[2] == content for event in events)]  # fmt: skip
        there = [f"file {file}: {shown(self.contents.get(file, []))}" for file in self.files_at(path, begin, end)]
        took = f"the capture took {(end - begin) / 1e6:.2f} ms; it holds {content}"
        return [took, *known, f"files there: {shown(self.paths.get(path, []))}", *there]

    def contents_of(self, file: int, begin: int, end: int) -> set[str]:
        """Return the contents that a file may have had at a time in between."""
        return set(_between(self.contents.get(file, []), begin, end))


def _between(events: Sequence[tuple[int, int, T]], begin: int, end: int) -> list[T]:
    found = []
    for at, (before, _, value) in enumerate(events):
        until = events[at + 1][1] if at + 1 < len(events) else end
        if before <= end and until >= begin:
            found.append(value)
    return found


def is_beginning(content: bytes, whole: Path) -> bool:
    """Return whether a content is the beginning of what the witness kept: a file that grew is captured so far."""
    return bool(content) and whole.read_bytes().startswith(content)


class BusyFiles:
    """Files of a folder that are changed all the time, one system call at a time."""

    def __init__(self, top: Path, witness: Path, seed: int) -> None:
        self._top, self._numbers = top, random.Random(seed)
        self._witness = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._contents_folder = Path(f"{witness}.contents")
        self._contents_folder.mkdir()
        self._files: dict[str, int] = {}
        self._contents: dict[int, bytes] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        self._next = 0

    @contextmanager
    def _telling(
        self, changed: int | None = None, content: bytes = b"", places: Mapping[str, int] = MappingProxyType({})
    ) -> Iterator[None]:
        """Tell the witness the next content of a file, and which file will be at which path; then when it was done."""
        changes = [] if changed is None else [(changed, digest(content))]
        if changed is not None:
            (self._contents_folder / digest(content)).write_bytes(content)
        os.write(self._witness, json.dumps([time.monotonic_ns(), changes, [*places.items()]]).encode() + b"\n")
        yield
        os.write(self._witness, f"{time.monotonic_ns()}\n".encode())
        if changed is not None:
            self._contents[changed] = content
        for name, file in places.items():
            self._files.pop(name, None)
            if file >= 0:
                self._files[name] = file

    def _create(self, name: str) -> None:
        """Create a file by its two steps, each of which is a state: it is empty, then it has its content."""
        file = self._next = self._next + 1
        with self._telling(file, b"", {name: file}):
            handle = os.open(self._top / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        content = self._numbers.randbytes(self._numbers.choice((10, 5000, 200_000, 1_500_000)))
        with self._telling(file, content):
            os.write(handle, content)
        os.close(handle)

    def step(self) -> None:
        """Make one change."""
        name, other = self._numbers.choice("abcdef"), self._numbers.choice("abcdef")
        if name not in self._files:
            return self._create(name)
        action = self._numbers.choice(("overwrite", "append", "poke", "map", "map", "rename", "remove", "replace"))
        if action == "replace":
            return self._replace(name)
        if action == "remove":
            with self._telling(places={name: -1}):
                (self._top / name).unlink()
        elif action == "rename" and name != other:
            with self._telling(places={name: -1, other: self._files[name]}):
                (self._top / name).rename(self._top / other)
        elif action != "rename":
            self._write(name, action)
        return None

    def _write(self, name: str, action: str) -> None:
        file = self._files[name]
        content = self._contents[file]
        at = {"overwrite": 0, "append": len(content)}.get(action, self._numbers.randrange(len(content)))
        piece = self._numbers.randbytes({"overwrite": len(content), "append": 100}.get(action, 1))
        with self._telling(file, content[:at] + piece + content[at + len(piece) :]):
            if action == "map":
                self._map(name, file)[at] = piece[0]
                return
            handle = os.open(self._top / name, os.O_WRONLY)
            os.pwrite(handle, piece, at)
            os.close(handle)

    def _map(self, name: str, file: int) -> mmap.mmap:
        if file not in self._mapped or len(self._mapped[file]) < len(self._contents[file]):
            with (self._top / name).open("r+b") as handle:
                self._mapped[file] = mmap.mmap(handle.fileno(), 0)
        return self._mapped[file]

    def _replace(self, name: str) -> None:
        self._create("new")
        with self._telling(places={"new": -1, name: self._files["new"]}):
            (self._top / "new").rename(self._top / name)


def write_files(ready: Event, stop: Event, top: Path, witness: Path, seed: int, pause: float) -> None:
    """Change files until asked to stop."""
    busy = BusyFiles(top, witness, seed)
    for _ in range(12):
        busy.step()
    ready.set()
    while not stop.is_set():
        busy.step()
        time.sleep(pause)
