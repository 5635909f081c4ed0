"""Reads files that their agent may be writing: again if they change under the reader, databases as units.

Nothing is guaranteed about consistency between files; such a checkpoint is called ``Fuzzy``.
"""

import os
from collections.abc import Callable
from pathlib import Path

from savepoint.errors import RunAsUserRequired
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.capture.change_detector import ChangeDetector
from savepoint_sidecar.capture.database_reader import DatabaseReader
from savepoint_sidecar.capture.draft import READ_ATTEMPTS, Draft
from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.capture.open_files import READ_ERRNOS, RootFiles
from savepoint_sidecar.files.walk import FileNode, signature_of, unreadable


class FuzzyReader:
    """Stores the files of one root as they are now; called from the writer's threads."""

    def __init__(
        self,
        writer: CheckpointWriter,
        draft: Draft,
        known: FileTable,
        previous: FileTable,
        *,
        files: RootFiles,
        detector: ChangeDetector,
        scratch: Path,
        clock_ns: Callable[[], int],
        check: Callable[[], None],
    ) -> None:
        """``files`` opens the root's files, ``known`` is what was captured before.

        ``previous`` is the last committed checkpoint; ``check`` may raise to end the capture.
        """
        self._writer, self._draft, self._files, self._detector = writer, draft, files, detector
        self._clock_ns, self._check = clock_ns, check
        self._databases = DatabaseReader(
            writer,
            draft,
            known,
            previous,
            files=files,
            detector=detector,
            scratch=scratch,
            clock_ns=clock_ns,
            check=check,
        )
        self._known = known
        self._contents = self._known.contents()

    def read(self, node: FileNode) -> tuple[str, ...]:
        """Store the file; return the paths that must be left out of the checkpoint after all."""
        self._check()
        if self._databases.covers(node.path):
            return ()  # stored or left out together with its database
        left_out = self._databases.reuse(node)
        if left_out is not None:
            return left_out
        try:
            return self._read(node)
        except FileNotFoundError:
            self._draft.vanished.append(node.path)
            return (node.path, *self._databases.companions_of_database(node.path))
        except RunAsUserRequired as error:
            self._draft.unreadable[node.path] = error
        except OSError as error:
            if error.errno not in READ_ERRNOS:
                raise
            self._draft.unreadable[node.path] = unreadable(self._draft.root, node, error)
        return self._databases.companions_of_database(node.path)

    def _read(self, node: FileNode) -> tuple[str, ...]:
        if self._databases.has_logs(node.path) and self._databases.is_database(node.path):
            return self._databases.read(node)
        if self._reuse(node):
            return ()
        if self._databases.is_database(node.path):
            return self._databases.read(node)
        self._read_file(node)
        return ()

    def _reuse(self, node: FileNode) -> bool:
        """Take over the content of a file that did not change since it was captured."""
        if not self._known.matches(node.path, node.signature):
            return False
        content = self._contents.find(node.path)
        if content is None or not self._writer.can_reuse(content):
            return False
        self._draft.table.put(node.path, node.signature, content, racy=False)
        return True

    def _read_file(self, node: FileNode) -> None:
        for _ in range(READ_ATTEMPTS):
            with self._files.open(node) as handle:
                self._detector.write_back(handle.descriptor)
                before = signature_of(os.fstat(handle.descriptor))
                content = self._writer.store_file(handle.descriptor, before.size, has_holes=self._detector.by_stat)
                read_at = self._clock_ns()
                after = signature_of(os.fstat(handle.descriptor))
            if after == before and content.size == before.size:
                self._draft.table.put(node.path, before, content, racy=self._detector.is_racy(before, read_at))
                return
            if after.size > before.size == content.size:
                break  # it grows, as logs do: it is captured up to the size that was seen
        else:
            self._draft.warnings.append(
                f"{self._draft.shown(node.path)} changed each time it was read; it is stored as it was read last"
            )
        self._draft.table.put(node.path, before, content, racy=True)
