"""Restores an agent's files in place, to its last committed checkpoint, after it crashed: only what differs is fetched.

Values of the SDK are restored by ``stage.components``, and empty roots by ``file_restore``. Idempotent; excluded paths
are not touched. All calls block.
"""

import errno
import hashlib
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from savepoint.contract.vocabulary import ComponentKind
from savepoint.repository.format.content import Content
from savepoint.repository.format.manifest import ComponentRecord
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.target import Target, set_mode_and_time, translate_errors, write_at

from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.file_table import Contents, FileTable, is_racy
from savepoint_sidecar.files.roots import Root, open_directory, remove
from savepoint_sidecar.files.walk import FileNode, open_below, walk
from savepoint_sidecar.restore.writable_folders import WritableFolders

log = logging.getLogger(__name__)

_READ = os.O_RDONLY | os.O_NONBLOCK
_KEEPS_FOLDER = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})
"""Errors of the removal of a folder that has excluded content, or at which a file system is mounted."""


@dataclass
class InPlaceReport:
    """Number of entries that an in-place restore had to change."""

    restored: int = 0
    removed: int = 0


def restore_in_place(reader: CheckpointReader, capture: Capture) -> InPlaceReport:
    """Make every root equal to the checkpoint, then record its files in the capture's tables."""
    report = InPlaceReport()
    for root in capture.roots:
        component = reader.manifest.component(root.component)
        if component is None or component.kind != ComponentKind.FILES:
            log.warning("%s is not part of the checkpoint: it is left unchanged", root.mount_path)
            continue
        _RootRestore(reader, capture, root, component, report).run()
    record_files(reader, capture)
    return report


def record_files(reader: CheckpointReader, capture: Capture) -> None:
    """Record in the capture's tables which files equal the checkpoint's. The roots must be at this checkpoint."""
    for root in capture.roots:
        component = reader.manifest.component(root.component)
        table = FileTable()
        capture.tables[root.name] = table
        if component is None or component.kind != ComponentKind.FILES:
            continue
        nodes = {node.path: node for node in walk(root, capture.excluded(root)).nodes if node.is_file}
        for entry in reader.tree_entries(component):
            node = nodes.get(entry.path)
            if not isinstance(entry, TreeFile) or node is None:
                continue
            if (node.signature.size, node.signature.mtime_ns) == (entry.content.size, entry.mtime_ns):
                content = reader.complete_content(entry.content)
                racy = is_racy(node.signature, capture.clock_ns())
                table.put(entry.path, node.signature, content, racy=racy)


class _RootRestore:
    """The in-place restore of one root."""

    def __init__(
        self, reader: CheckpointReader, capture: Capture, root: Root, component: ComponentRecord, report: InPlaceReport
    ) -> None:
        self._reader, self._root, self._component, self._report = reader, root, component, report
        self._excluded = capture.excluded(root)
        self._table = capture.tables[root.name]
        self._known: Contents = self._table.contents()

    def run(self) -> None:
        with open_directory(self._root.path) as top, Target(top) as target:
            nodes = {node.path: node for node in walk(self._root, self._excluded).nodes}
            differing: list[TreeEntry] = []
            directories: list[TreeDirectory] = []
            kept: set[str] = set()
            for entry in self._reader.tree_entries(self._component):
                if self._excluded.covers(entry.path):
                    continue
                node = nodes.get(entry.path)
                if isinstance(entry, TreeDirectory):
                    directories.append(entry)
                if node is not None and self._matches(top, entry, node):
                    kept.add(entry.path)
                else:
                    differing.append(entry)
            changed = [*(path for path in nodes if path not in kept), *(entry.path for entry in differing)]
            with WritableFolders(top) as folders:
                folders.unlock({path.rpartition("/")[0] for path in changed} & nodes.keys())
                self._remove(top, nodes, kept)
                self._restore(target, differing)
            for folder in reversed(directories):
                target.finish_directory(folder.path, folder.mode, folder.mtime_ns)

    def _matches(self, top: int, entry: TreeEntry, node: FileNode) -> bool:
        if isinstance(entry, TreeDirectory):
            return node.is_directory
        if isinstance(entry, TreeSymlink):
            return node.is_symlink and _link_target(top, entry.path) == entry.target
        if not node.is_file or node.signature.size != entry.content.size:
            return False
        if self._known_unchanged(entry, node) or self._content_equals(top, entry):
            self._restore_stat(top, entry, node)
            return True
        return False

    def _known_unchanged(self, entry: TreeFile, node: FileNode) -> bool:
        """Return whether the file is known, without reading it, to have the checkpoint's content."""
        if not self._table.matches(entry.path, node.signature):
            return False
        known = self._known.find(entry.path)
        return known is not None and _chunk_ids(known) == _chunk_ids(entry.content) and known.size == entry.content.size

    def _content_equals(self, top: int, entry: TreeFile) -> bool:
        try:
            handle = open_below(top, entry.path, _READ)
        except OSError:
            return False
        try:
            offset = 0
            buffer = memoryview(bytearray(1 << 20))
            for ref in self._reader.content_chunks(entry.content):
                piece = buffer[: ref.length]
                if os.preadv(handle, [piece], offset) != ref.length or hashlib.sha256(piece).digest() != ref.id:
                    return False
                offset += ref.length
            return os.fstat(handle).st_size == offset
        finally:
            os.close(handle)

    def _restore_stat(self, top: int, entry: TreeFile, node: FileNode) -> None:
        if node.signature.mtime_ns == entry.mtime_ns and stat.S_IMODE(node.mode) & 0o777 == entry.mode:
            return
        handle = open_below(top, entry.path, _READ)
        try:
            set_mode_and_time(handle, entry.mode, entry.mtime_ns)
        finally:
            os.close(handle)

    def _remove(self, top: int, nodes: dict[str, FileNode], kept: set[str]) -> None:
        """Remove what is not in the checkpoint, deepest first; a folder with excluded content stays."""
        for path in sorted(nodes, key=_depth, reverse=True):
            if path in kept:
                continue
            parent, _, name = path.rpartition("/")
            with translate_errors(path), suppress(FileNotFoundError, NotADirectoryError):
                folder = open_below(top, parent, os.O_RDONLY | os.O_DIRECTORY) if parent else os.dup(top)
                try:
                    if nodes[path].is_directory:
                        _remove_if_empty(folder, name)
                    else:
                        remove(folder, name)
                    self._report.removed += 1
                finally:
                    os.close(folder)

    def _restore(self, target: Target, entries: list[TreeEntry]) -> None:
        for entry in entries:
            if isinstance(entry, TreeDirectory):
                target.make_directory(entry.path)
            elif isinstance(entry, TreeFile):
                self._restore_file(target, entry)
            self._report.restored += 1
        for entry in entries:
            if isinstance(entry, TreeSymlink):
                target.make_symlink(entry.path, entry.target, entry.mtime_ns)

    def _restore_file(self, target: Target, entry: TreeFile) -> None:
        offset = 0
        descriptor = target.create(entry.path)

        def write(piece: bytes) -> None:
            nonlocal offset
            write_at(descriptor, offset, memoryview(piece))
            offset += len(piece)

        with translate_errors(entry.path):
            try:
                self._reader.read_content_into(entry.content, write)
                set_mode_and_time(descriptor, entry.mode, entry.mtime_ns)
            finally:
                os.close(descriptor)


def _chunk_ids(content: Content) -> tuple[bytes, ...]:
    return tuple(ref.id for ref in (content.more or content.chunks))


def _remove_if_empty(folder: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in _KEEPS_FOLDER:
            raise


def _link_target(top: int, path: str) -> str | None:
    parent, _, name = path.rpartition("/")
    try:
        folder = open_below(top, parent, os.O_RDONLY | os.O_DIRECTORY) if parent else os.dup(top)
    except OSError:
        return None
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path
