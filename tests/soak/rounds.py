"""One round: a random tree, edited, with a few checkpoints, each restored and compared with the witness's record."""

import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from savepoint.errors import StateUnstable
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree
from savepoint.repository.write.writer import CheckpointWriter
from savepoint.storage.directory import DirectoryStore
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.roots import Root

from tests.soak.edits import Editor
from tests.soak.witness import Seen, differences, look
from tests.soak.writers import (
    JOURNALS,
    LOCKINGS,
    PHASES,
    Database,
    History,
    Writer,
    is_beginning,
    transactions_in,
    write_files,
)
from tests.unit.sidecar.checkpoints import KEY, finish

SETTLE_SECONDS = 0.025
"""Longer than the time within which a stat proves nothing."""
CHECKPOINTS = 3


@dataclass
class Result:
    """The findings of one round."""

    seed: int
    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Checkpoints by kind, and what was named in them."""


class Round:
    """A state folder, its checkpoints and their comparison."""

    def __init__(self, seed: int, on: Path, scratch: Path) -> None:
        """``on`` is an empty folder of the file system under test; ``scratch`` holds everything else."""
        self.result, self._numbers = Result(seed), random.Random(seed)
        self._scratch = scratch
        self._state = on / "state"
        self._state.mkdir()
        self._root = Root("files", "/data", self._state)
        self._capture = Capture([self._root], (), time.time_ns)
        self._store = DirectoryStore(scratch / "store", create=True)
        self._parent: Manifest | None = None
        self._editor = Editor(self._state, self._numbers)
        self._databases: list[tuple[Database, Writer]] = []
        self._during = (0, 0)
        self._left_by_writer: dict[str, Seen] = {}

    def run(self) -> Result:
        """Run it."""
        try:
            self._editor.create_tree()
            if self._numbers.random() < 0.35:
                self._add_databases()
            busy = self._numbers.random() < 0.3
            for number in range(CHECKPOINTS):
                self._edit()
                if self._numbers.random() < 0.15:  # the sidecar was killed
                    self._capture = Capture([self._root], (), time.time_ns)
                self._checkpoint(number, busy)
        finally:
            for _, writer in self._databases:
                writer.kill()
            self._editor.close()
        return self.result

    def _edit(self) -> None:
        for _ in range(self._numbers.randrange(1, 9)):
            self._editor.edit()
        if self._numbers.random() < 0.7:
            time.sleep(SETTLE_SECONDS)

    def _add_databases(self) -> None:
        (self._state / "databases").mkdir()
        self._editor.untouched.add("databases")
        for number in range(self._numbers.randrange(1, 3)):
            database = Database(
                self._state / "databases" / f"{number}.db", self._scratch / f"transactions{number}",
                self._numbers.choice(JOURNALS), self._numbers.choice(LOCKINGS), self._numbers.choice(PHASES),
            )  # fmt: skip
            self._databases.append((database, database.start()))

    def _checkpoint(self, number: int, busy: bool) -> None:
        writes = any(database.phase == "writing" for database, _ in self._databases)
        if busy:
            self._while_files_change(number)
        elif writes or self._numbers.random() < 0.4:
            self._compare_quiet(number, *self._read(with_precopy=self._numbers.random() < 0.4), raw=False)
        else:
            self._paused(number)

    def _new_writer(self) -> CheckpointWriter:
        return CheckpointWriter(self._store, self._store, KEY, 1, self._parent)

    def _paused(self, number: int) -> None:
        """Take a checkpoint of a paused agent, which was still working during the pre-copy."""
        before = self._transactions()
        writer = self._new_writer()
        with self._edits_meanwhile(self._numbers.random() < 0.3):
            drafts = self._capture.precopy(writer)
        for _ in range(self._numbers.randrange(3)):
            self._editor.edit()
        expected = look(self._state)
        with Spool(self._scratch) as spool:
            try:
                (draft,) = self._capture.final_pass(writer, drafts, spool)
            except StateUnstable:
                writer.abort()
                self.result.counts["refused"] += 1
                if not any(database.may_be_refused for database, _ in self._databases):
                    self._fail(number, "refused although nothing was written", ())
                return
            self._capture.store(writer, [draft], spool)
            if self._numbers.random() < 0.1:  # the attempt fails after all
                writer.abort()
                return
            restored = self._commit(writer, draft, number)
        self._compare_quiet(number, draft, restored, expected, before, raw=True)

    def _read(self, *, with_precopy: bool) -> tuple[Draft, Path, dict[str, Seen], list[int]]:
        """Take a checkpoint of an agent without the SDK."""
        writer, scratch = self._new_writer(), self._scratch / "copies"
        scratch.mkdir(exist_ok=True)
        precopied = self._capture.precopy(writer) if with_precopy else []
        if with_precopy:
            self._editor.edit()
        expected = look(self._state, without=(*self._editor.untouched,))
        before, begin = self._transactions(), time.monotonic_ns()
        (draft,) = self._capture.read_fuzzy(writer, scratch, precopied)
        self._during = begin, time.monotonic_ns()
        self._capture.store(writer, [draft], None)
        return draft, self._commit(writer, draft, -1), expected, before

    def _commit(self, writer: CheckpointWriter, draft: Draft, number: int) -> Path:
        self._parent = finish(writer)
        self._capture.committed([draft])
        target = self._scratch / "restored"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        component = self._parent.component("files.files")
        if component is not None:
            with CheckpointReader(self._store, KEY, self._parent) as reader:
                restore_tree(reader, component, target, durable=False)
        return target

    @contextmanager
    def _edits_meanwhile(self, really: bool) -> Iterator[None]:
        edits = [self._editor.edit] * (self._numbers.randrange(1, 6) if really else 0)
        thread = threading.Thread(target=lambda: [edit() for edit in edits])
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _transactions(self) -> list[int]:
        return [database.transactions()[0] for database, _ in self._databases]

    def _compare_quiet(
        self, number: int, draft: Draft, restored: Path, expected: dict[str, Seen], before: list[int], *, raw: bool
    ) -> None:
        """Compare a checkpoint of files that no process wrote: it holds exactly these, but databases may be merged."""
        self.result.counts["paused" if raw else "without the SDK"] += 1
        found = look(restored)
        if not raw:
            found = {path: seen for path, seen in found.items() if path.split("/")[0] not in self._editor.untouched}
        named = _named(draft)
        self.result.counts["named"] += len(named)
        wrong = [path for path in differences(expected, found) if not named(path)]
        if wrong:
            described = [f"{path}: {expected.get(path)} restored as {found.get(path)}" for path in wrong]
            self._fail(number, "differs", described)
        if raw and not draft.is_exact:
            self._fail(number, "a pause in which nothing happened is not exact", self._capture.warnings(draft))
        for (database, _), least in zip(self._databases, before, strict=True):
            self._compare_database(number, database, draft, restored, least)

    def _compare_database(self, number: int, database: Database, draft: Draft, restored: Path, least: int) -> None:
        most, name = database.transactions()[1], str(database.path.relative_to(self._state))
        is_named = _named(draft)(name)
        self.result.counts["databases"] += 1
        self.result.counts["busy databases"] += is_named
        path = restored / name
        if database.may_be_damaged or (is_named and not path.exists()):
            return
        try:
            count = transactions_in(path)
        except (AssertionError, sqlite3.Error) as error:
            return self._fail(number, f"{database} is damaged: {error}", ())
        if not (0 if is_named else least) <= count <= most:
            self._fail(number, f"{database} holds {count} transactions, of {least} to {most}", ())
        return None

    def _while_files_change(self, number: int) -> None:
        """Take a checkpoint while a process changes files, and is killed at some point."""
        (self._state / f"busy{number}").mkdir()
        self._editor.untouched.add(f"busy{number}")
        witness = self._scratch / f"history{number}"
        pause = self._numbers.choice((0.0, 0.001, 0.02))
        writer = Writer(write_files, self._state / f"busy{number}", witness, self._numbers.randrange(2**32), pause)
        killer = threading.Timer(self._numbers.random() / 5, writer.kill)
        if self._numbers.random() < 0.5:
            killer.start()
        draft, restored, expected, before = self._read(with_precopy=False)
        killer.cancel()
        writer.kill()
        self._left_by_writer = look(self._state / f"busy{number}")
        if killer.ident is not None:
            killer.join()
        self._compare_history(number, draft, restored / f"busy{number}", History.read(witness))
        self._compare_quiet(number, draft, restored, expected, before, raw=False)

    def _compare_history(self, number: int, draft: Draft, restored: Path, history: History) -> None:
        begin, end = self._during
        self.result.counts["under write"] += 1
        named = _named(draft)
        found = look(restored) if restored.exists() else {}
        for name in {*history.paths, *found}:
            path = f"{restored.name}/{name}"
            files, seen = history.files_at(name, begin, end), found.get(name)
            self.result.counts["busy files"] += 1
            if named(path):
                self.result.counts["busy files named"] += 1
            elif seen is None:
                if -1 not in files:
                    self._fail(number, f"{path} is missing", ())
            elif not any(self._held(history, file, restored / name, seen) for file in files):
                self._fail(
                    number, f"{path} holds what it never held then", history.describe(name, seen.content, begin, end)
                )

    def _held(self, history: History, file: int, restored: Path, seen: Seen) -> bool:
        """Return whether a file held this during the capture, or began with it while it grew."""
        contents = history.contents_of(file, *self._during)
        if seen.content in contents:
            return True
        if history.is_unfinished and seen == self._left_by_writer.get(restored.name):
            return True
        content = restored.read_bytes()
        return any(is_beginning(content, history.folder / each) for each in contents)

    def _fail(self, number: int, what: str, details: "tuple[str, ...] | list[str]") -> None:
        text = "\n    ".join((what, *details, f"edits: {', '.join(self._editor.done[-40:])}"))
        self.result.failures.append(f"seed {self.result.seed}, checkpoint {number}: {text}")


class _Named:
    """The paths that a checkpoint's warnings name."""

    def __init__(self, draft: Draft) -> None:
        self._paths = {*draft.vanished, *draft.unreadable, *draft.walk.unreadable}
        self._folders = set(draft.walk.unsettled)
        self._texts = [*draft.warnings, *draft.doubts, *draft.walk.skipped.values()]

    def __len__(self) -> int:
        return len(self._paths) + len(self._folders) + len(self._texts)

    def __call__(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        return path in self._paths or folder in self._folders or any(path in text for text in self._texts)


_named: Callable[[Draft], _Named] = _Named
