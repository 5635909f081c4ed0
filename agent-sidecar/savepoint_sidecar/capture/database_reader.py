"""Stores the SQLite databases of one root, each with its logs as one unit, while their agent may be writing.

A database that cannot be copied now is stored as the last checkpoint has it, or left out, with a warning that names
the reason. The proofs of a copy are in ``database_unit``.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from savepoint.contract.stage_layout import DATABASE_COPY_SUFFIX
from savepoint.contract.vocabulary import Reason
from savepoint.errors import StateUnstable
from savepoint.repository.format.content import Content

from savepoint_sidecar.capture import database
from savepoint_sidecar.capture.database_unit import DatabaseUnit, NotCopied, UnitCopy, remove_copy
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.open_files import READ, RootFiles
from savepoint_sidecar.capture.root_read import RootRead
from savepoint_sidecar.files.walk import FileNode, Signature

_FINE_STAMPS: Final = ("tmpfs", "ramfs")
_COARSE_WINDOW_NS: Final = 4_000_000_000
"""For file systems whose time stamps were not probed; those of FAT advance in steps of 2 s."""
_MERGED: Final = 2 << 62
_WITH_LOGS: Final = 3 << 62
"""Set in the inode of a unit's signature, so that no record of the database file alone matches it."""


class DatabaseReader:
    """The databases of one root; called from the writer's threads."""

    def __init__(self, read: RootRead) -> None:
        self._writer, self._draft, self._files, self._scratch = read.writer, read.draft, read.files, read.scratch
        self._detector = detector = read.detector
        has_fine_stamps = detector.granularity_ns or detector.file_system in _FINE_STAMPS
        self._window_ns = detector.racy_ns if has_fine_stamps else max(detector.racy_ns, _COARSE_WINDOW_NS)
        self._known, self._previous = read.known, read.previous
        self._clock_ns, self._check = read.clock_ns, read.check
        self._signatures = {node.path: node.signature for node in self._draft.walk.nodes if node.is_file}
        self._is_database: dict[str, bool] = {}

    def covers(self, path: str) -> bool:
        """Return whether the file accompanies a database, which is read together with it."""
        base = next((path.removesuffix(each) for each in database.COMPANIONS if path.endswith(each)), "")
        return base in self._signatures and self.is_database(base)

    def has_logs(self, path: str) -> bool:
        """Return whether there are files beside this one that would hold a part of it if it were a database."""
        return bool(self._logs(path))

    def is_database(self, path: str) -> bool:
        """Return whether the file is a database, by its content or by that of the logs beside it."""
        answer = self._is_database.get(path)
        if answer is None:
            answer = self._is_database[path] = self._looks_like_database(path)
        return answer

    def companions_of_database(self, path: str) -> tuple[str, ...]:
        """Return the files that belong to the file if it is a database."""
        companions = self.companions(path)
        return companions if companions and self.is_database(path) else ()

    def reuse(self, node: FileNode) -> tuple[str, ...] | None:
        """Take over a unit that did not change since it was captured; return the paths to leave out, else None."""
        if self._known.matches(node.path, self._unit_signature(node, _MERGED)):
            content = self._known.contents().find(node.path)
            if content is None or not self._writer.can_reuse(content):
                return None
            self._put_merged(node, content, racy=False)
            return self.companions(node.path)
        signature = self._unit_signature(node, _WITH_LOGS)
        if not self._known.matches(node.path, signature):
            return None
        logs = [path for path in self._logs(node.path) if self._known.matches(path, self._signatures[path])]
        contents = {path: self._known.contents().find(path) for path in (node.path, *logs)}
        if not all(map(self._can_reuse, contents.values())):
            return None
        self._put_with_logs(node, contents, racy=False)
        return tuple(path for path in self.companions(node.path) if path not in contents)

    def read(self, node: FileNode) -> tuple[str, ...]:
        """Store the database; return the paths to leave out. FileNotFoundError if it no longer exists."""
        target = self._scratch / f"{self._draft.root.name}-{node.signature.inode}{DATABASE_COPY_SUFFIX}"
        with _folder_of(self._files, node.path) as (folder, name):
            unit = DatabaseUnit(folder, name, clock_ns=self._clock_ns, check=self._check, window_ns=self._window_ns)
            try:
                if self._store_at_rest(unit, node):
                    return self.companions(node.path)
                copied = unit.copy(target)
                if not copied.needs_others and (not copied.logs or database.recover(target)):
                    self._store_single(node, copied)
                    return self.companions(node.path)
                if not copied.needs_others:
                    copied = unit.copy(target)  # recovery has changed the first copy
                return self._store_with_logs(node, copied)
            except NotCopied as problem:
                return self._keep_previous(node, problem)
            finally:
                remove_copy(target)

    def _store_at_rest(self, unit: DatabaseUnit, node: FileNode) -> bool:
        """Store a database that no process writes to, without a copy; return False if it is not at rest."""
        with unit.quiet() as unchanged:
            if unchanged is None:
                return False
            with unit.open() as descriptor:
                size = os.fstat(descriptor).st_size
                content = self._writer.store_file(descriptor, size)
            read_at = self._clock_ns()
            if not unchanged() or content.size != size:
                return False
        self._put_single(node, content, read_at)
        return True

    def _store_single(self, node: FileNode, copied: UnitCopy) -> None:
        """Store a copy that is complete without logs."""
        read_at = self._clock_ns()
        content = self._store(copied.path)
        if copied.logs or copied.is_backup:
            self._put_merged(node, content, racy=self._detector.is_racy(self._unit_signature(node, _MERGED), read_at))
        else:
            self._put_single(node, content, read_at)

    def _store_with_logs(self, node: FileNode, copied: UnitCopy) -> tuple[str, ...]:
        """Store the database file and its logs as they were copied; SQLite recovers them where they are restored."""
        logs = {f"{node.path}{suffix}": Path(f"{copied.path}{suffix}") for suffix in copied.logs}
        if any(path not in self._signatures for path in logs):
            raise NotCopied(Reason.DATABASE_BUSY, "its journal was created during the capture, or is excluded")
        racy = self._detector.is_racy(self._unit_signature(node, _WITH_LOGS), self._clock_ns())
        copies = {node.path: copied.path, **logs}
        self._put_with_logs(node, {path: self._store(copy) for path, copy in copies.items()}, racy=racy)
        if not copied.needs_others:
            self._draft.unstable.add(node.path)
            self._draft.warnings.append(
                f"database {node.path!r} was copied as a plain file, with its logs: SQLite could not read it"
            )
        return tuple(path for path in self.companions(node.path) if path not in logs)

    def _put_single(self, node: FileNode, content: Content, read_at: int) -> None:
        """Record the content of a database file that is complete without logs."""
        if self.has_logs(node.path):
            self._put_merged(node, content, racy=self._detector.is_racy(self._unit_signature(node, _MERGED), read_at))
        else:
            self._draft.table.put(
                node.path, node.signature, content, racy=self._detector.is_racy(node.signature, read_at)
            )

    def _put_merged(self, node: FileNode, content: Content, *, racy: bool) -> None:
        """Record a content that may differ from the file's, under a time that the file does not have."""
        signature = self._unit_signature(node, _MERGED)
        self._draft.table.put(node.path, signature, content, racy=racy)
        self._draft.mtimes[node.path] = signature.mtime_ns + 1

    def _put_with_logs(self, node: FileNode, contents: Mapping[str, Content | None], *, racy: bool) -> None:
        for path, content in contents.items():
            signature = self._unit_signature(node, _WITH_LOGS) if path == node.path else self._signatures[path]
            assert content is not None
            self._draft.table.put(path, signature, content, racy=racy)

    def _keep_previous(self, node: FileNode, problem: NotCopied) -> tuple[str, ...]:
        """Store the unit as the last committed checkpoint has it; leave it out if that does not hold all of it."""
        unit = [node.path, *(f"{node.path}{suffix}" for suffix in database.LOGS)]
        known = {path: self._previous.contents().find(path) for path in unit if path in self._previous}
        usable = {path: each for path, each in known.items() if path in self._signatures and self._can_reuse(each)}
        complete = node.path in usable and len(usable) == len(known)
        outcome = "is stored as the last checkpoint has it" if complete else "is left out"
        self._draft.warnings.append(f"{problem.reason}: database {node.path!r} {outcome}: {problem}")
        if not complete:
            self._draft.missing[node.path] = f"{problem.reason}: {problem}"
            return (node.path, *self.companions(node.path))
        for path, content in usable.items():
            assert content is not None
            self._draft.table.put(path, self._signatures[path], content, racy=True)
            self._draft.mtimes[path] = self._signatures[path].mtime_ns + 1
        return tuple(path for path in self.companions(node.path) if path not in usable)

    def _store(self, copy: Path) -> Content:
        handle = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._writer.store_file(handle, os.fstat(handle).st_size)
        finally:
            os.close(handle)

    def _can_reuse(self, content: Content | None) -> bool:
        return content is not None and self._writer.can_reuse(content)

    def companions(self, path: str) -> tuple[str, ...]:
        """Return the files beside a database that belong to it."""
        return tuple(each for suffix in database.COMPANIONS if (each := f"{path}{suffix}") in self._signatures)

    def _logs(self, path: str) -> tuple[str, ...]:
        return tuple(each for suffix in database.LOGS if (each := f"{path}{suffix}") in self._signatures)

    def _unit_signature(self, node: FileNode, mark: int) -> Signature:
        """Combine the signatures of a database and its logs, which may hold changes that the file does not show yet."""
        size, mtime_ns, ctime_ns, inode = node.signature
        for log in map(self._signatures.__getitem__, self._logs(node.path)):
            size, inode = size + log.size, inode * 31 + log.inode
            mtime_ns, ctime_ns = max(mtime_ns, log.mtime_ns), max(ctime_ns, log.ctime_ns)
        return Signature(size, mtime_ns, ctime_ns, inode & (_MERGED >> 1) - 1 | mark)

    def _looks_like_database(self, path: str) -> bool:
        head = self._head(path)
        if database.has_valid_header(head):
            return True
        for suffix in database.LOGS:
            log = f"{path}{suffix}"
            if log in self._signatures and database.log_identity_of(suffix, self._head(log)):
                return True
        if database.is_database(head):
            self._draft.unstable.add(path)
            self._draft.warnings.append(f"database {path!r} was copied as a plain file: SQLite could not read it")
        return False

    def _head(self, path: str) -> bytes:
        try:
            with _folder_of(self._files, path) as (folder, name):
                handle = os.open(name, READ, dir_fd=folder)
        except OSError:
            return b""
        try:
            return os.pread(handle, database.HEADER_BYTES, 0)
        except OSError:
            return b""
        finally:
            os.close(handle)


def require_settled(files: RootFiles, draft: Draft, paths: Iterable[str]) -> None:
    """Raise StateUnstable if a database of a paused agent may hold half of a transaction that nothing can undo."""
    for path in paths:
        with suppress(FileNotFoundError), _folder_of(files, path) as (folder, name):
            if not DatabaseUnit(folder, name).is_settled():
                raise StateUnstable(
                    f"{draft.shown(path)} is a database with an exclusive lock and no journal on disk, so that half of "
                    "a transaction may be in it. Commit before each safe point and use journal_mode=WAL, or exclude it "
                    "with spec.state.exclude in the policy."
                )


@contextmanager
def _folder_of(files: RootFiles, path: str) -> Iterator[tuple[int, str]]:
    folder, _, name = path.rpartition("/")
    handle = files.open_folder(folder)
    try:
        yield handle, name
    finally:
        os.close(handle)
