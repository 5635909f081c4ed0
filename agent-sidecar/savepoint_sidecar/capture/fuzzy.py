"""Reads files that their agent may be writing: again if they change under the reader, databases by SQLite's backup.

Nothing is guaranteed about consistency between files; such a checkpoint is called ``Fuzzy``.
"""

import os
from collections.abc import Callable
from pathlib import Path

from savepoint.contract.stage_layout import DATABASE_COPY_SUFFIX
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.capture import database
from savepoint_sidecar.capture.draft import READ, READ_ATTEMPTS, Draft, OpenFile
from savepoint_sidecar.capture.file_table import FileTable, is_racy
from savepoint_sidecar.files.walk import FileNode, Signature, open_below, signature_of


class FuzzyReader:
    """Stores the files of one root as they are now; called from the writer's threads."""

    def __init__(
        self,
        writer: CheckpointWriter,
        draft: Draft,
        known: FileTable,
        *,
        top: int,
        scratch: Path,
        clock_ns: Callable[[], int],
        check: Callable[[], None],
    ) -> None:
        """``top`` is the open root, ``known`` what was captured before; ``check`` may raise to end the capture."""
        self._writer, self._draft, self._top, self._scratch = writer, draft, top, scratch
        self._clock_ns, self._check = clock_ns, check
        self._signatures = {node.path: node.signature for node in draft.walk.nodes if node.is_file}
        self._databases: set[str] = set()
        self._known = known
        self._contents = self._known.contents()

    def read(self, node: FileNode) -> tuple[str, ...]:
        """Store the file; return the paths that must be left out of the checkpoint after all."""
        self._check()
        base = _database_of(node.path)
        if base in self._signatures and self._is_database(base):
            return (node.path,)  # the copy of the database includes its content
        signature = self._signature_with_wal(node)
        if self._known.matches(node.path, signature):
            content = self._contents.find(node.path)
            if content is not None and self._writer.can_reuse(content):
                self._draft.table.put(node.path, signature, content, racy=False)
                return ()
        try:
            if self._is_database(node.path) and self._back_up(node, signature):
                return ()
            self._read_file(node)
        except FileNotFoundError:
            return (node.path,)
        return ()

    def _read_file(self, node: FileNode) -> None:
        root = self._draft.root
        for _ in range(READ_ATTEMPTS):
            with OpenFile(self._top, root, node) as handle:
                before = signature_of(os.fstat(handle.descriptor))
                content = self._writer.store_file(handle.descriptor, before.size)
                read_at = self._clock_ns()
                if signature_of(os.fstat(handle.descriptor)) == before and content.size == before.size:
                    self._draft.table.put(node.path, before, content, racy=is_racy(before, read_at))
                    return
        self._draft.table.put(node.path, before, content, racy=True)

    def _back_up(self, node: FileNode, signature: Signature) -> bool:
        root = self._draft.root
        target = self._scratch / f"{root.name}-{node.signature.inode}{DATABASE_COPY_SUFFIX}"
        source = root.path / node.path
        if not database.may_back_up(self._head(node.path), source) or not database.back_up(source, target):
            self._draft.warnings.append(f"database {node.path!r} was copied as a plain file: SQLite could not read it")
            return False
        try:
            handle = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = self._writer.store_file(handle, os.fstat(handle).st_size)
            finally:
                os.close(handle)
        finally:
            target.unlink(missing_ok=True)
        self._draft.table.put(node.path, signature, content, racy=is_racy(signature, self._clock_ns()))
        return True

    def _signature_with_wal(self, node: FileNode) -> Signature:
        """Combine a database's signature with that of its log, which may hold changes the file does not show yet."""
        log = self._signatures.get(f"{node.path}-wal")
        if log is None or log.size == 0:
            return node.signature
        main = node.signature
        return Signature(
            main.size + log.size,
            max(main.mtime_ns, log.mtime_ns),
            max(main.ctime_ns, log.ctime_ns),
            main.inode ^ (log.inode << 1 & (1 << 64) - 1),
        )

    def _is_database(self, path: str) -> bool:
        if path in self._databases:
            return True
        if self._signatures[path].size >= 100 and database.is_database(self._head(path)):
            self._databases.add(path)
            return True
        return False

    def _head(self, path: str) -> bytes:
        try:
            handle = open_below(self._top, path, READ)
        except OSError:
            return b""
        try:
            return os.pread(handle, 100, 0)
        finally:
            os.close(handle)


def _database_of(path: str) -> str:
    """Return the path of the database that a file of this name accompanies; an empty string for other files."""
    return next((path.removesuffix(each) for each in database.COMPANIONS if path.endswith(each)), "")
