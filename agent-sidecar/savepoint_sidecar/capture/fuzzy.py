"""Reads files that their agent may be writing: again if they change under the reader, databases as units.

Nothing is guaranteed about consistency between files; such a checkpoint is called ``Fuzzy``.
"""

import os

from savepoint.errors import RunAsUserRequired
from savepoint.repository.format.content import Content

from savepoint_sidecar.capture.database_reader import DatabaseReader
from savepoint_sidecar.capture.draft import READ_ATTEMPTS
from savepoint_sidecar.capture.open_files import READ_ERRNOS
from savepoint_sidecar.capture.root_read import RootRead
from savepoint_sidecar.files.walk import FileNode, signature_of, unreadable


class FuzzyReader:
    """Stores the files of one root as they are now; called from the writer's threads."""

    def __init__(self, read: RootRead) -> None:
        self._writer, self._draft, self._files, self._detector = read.writer, read.draft, read.files, read.detector
        self._clock_ns, self._check = read.clock_ns, read.check
        self._databases = DatabaseReader(read)
        self._known = read.known
        self._contents = self._known.contents()
        self._previous, self._previous_contents = read.previous, read.previous.contents()

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
                read_at = self._clock_ns()
                before = self._detector.begin_reading(handle.descriptor)
                content = self._store(handle.descriptor, before.size)
                after = signature_of(os.fstat(handle.descriptor))
                racy = self._detector.is_racy(before, read_at)
                has_grown = after.size > before.size == content.size
                is_stable = has_grown or (after == before and content.size == before.size)
                if is_stable and (has_grown or racy or not self._detector.by_stat):  # stamps do not prove it
                    is_stable = self._is_as_before(node.path, content) or self._reads_again(handle.descriptor, content)
            if is_stable:
                # one that grows, as logs do, is captured up to the size that was seen
                self._draft.table.put(node.path, before, content, racy=racy or has_grown)
                return
        self._draft.unstable.add(node.path)
        self._draft.warnings.append(
            f"{self._draft.shown(node.path)} changed each time it was read; it is stored as it was read last"
        )
        self._draft.table.put(node.path, before, content, racy=True)

    def _is_as_before(self, path: str, content: Content) -> bool:
        """Return whether the last checkpoint has this content too, so that nothing changed while it was read now."""
        return path in self._previous and _equal(self._previous_contents.find(path), content)

    def _reads_again(self, descriptor: int, content: Content) -> bool:
        """Return whether the file is read the same again, so that it was like this between the two times."""
        self._detector.begin_reading(descriptor)
        return _equal(self._store(descriptor, content.size), content)

    def _store(self, descriptor: int, size: int) -> Content:
        return self._writer.store_file(descriptor, size, has_holes=self._detector.shows_holes)


def _equal(one: Content | None, other: Content) -> bool:
    return one is not None and one.size == other.size and list(one.chunk_ids()) == list(other.chunk_ids())
