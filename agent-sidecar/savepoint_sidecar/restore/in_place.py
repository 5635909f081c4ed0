"""Restores an agent's files in place, in roots that hold files already: only what differs is fetched and written.

What it replaces or removes is moved to ``.savepoint``, never deleted. Values of the SDK are restored by
``stage.components``, and empty roots by ``file_restore``. Idempotent; excluded paths are not touched. All calls block.
"""

import errno
import hashlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from savepoint.contract.control_protocol import Replaced
from savepoint.contract.names import MARKER_DIRECTORY
from savepoint.contract.vocabulary import ComponentKind
from savepoint.errors import NoSpace
from savepoint.repository.format.chunk import is_zero
from savepoint.repository.format.content import Content
from savepoint.repository.format.manifest import ComponentRecord
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.target import Target, set_stat, translate_errors, write_data_at

from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.file_table import Contents, FileTable, is_racy
from savepoint_sidecar.files.roots import LOST_AND_FOUND, Root, open_directory
from savepoint_sidecar.files.walk import FileNode, open_below, walk
from savepoint_sidecar.restore.aside import PREFIX, new_folder, replaced_of
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
    replaced: list[Replaced] = field(default_factory=list)
    """The files that were replaced or removed, by the folder that they were moved to."""


def restore_in_place(reader: CheckpointReader, capture: Capture, label: str) -> InPlaceReport:
    """Make every root equal to the checkpoint, then record its files in the capture's tables.

    ``label`` names the folders for what it replaces. NoSpace if what differs does not fit beside that; then nothing
    has been changed.
    """
    report = InPlaceReport()
    restores: list[RootRestore] = []
    for root in capture.roots:
        component = reader.manifest.component(root.component)
        if component is None or component.kind != ComponentKind.FILES:
            log.warning("%s is not part of the checkpoint: it is left unchanged", root.mount_path)
            continue
        restores.append(RootRestore(reader, capture, root, component, label))
    _require_space(restores)
    for restore in restores:
        restore.apply(report)
    record_files(reader, capture)
    return report


def _require_space(restores: list["RootRestore"]) -> None:
    needed: Counter[int] = Counter()
    for restore in restores:
        path = restore.root.path
        device = os.stat(path).st_dev  # noqa: PTH116 - beside statvfs
        needed[device] += restore.needed_bytes
        status = os.statvfs(path)
        free = status.f_bavail * status.f_frsize
        if needed[device] > free:
            raise NoSpace(
                f"the files to restore need {needed[device]} bytes below {restore.root.mount_path}; {free} are free: "
                f"nothing was changed; {more_space()}"
            )


def more_space() -> str:
    """Return the remedy for a volume that has no room for a checkpoint beside what it replaces."""
    return (
        f"give the volume more space, or delete files that earlier restores moved to {MARKER_DIRECTORY}/{PREFIX}* there"
    )


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


class RootRestore:
    """The in-place restore of one root: a comparison, which changes nothing, and then its application."""

    def __init__(
        self, reader: CheckpointReader, capture: Capture, root: Root, component: ComponentRecord, label: str
    ) -> None:
        """Compare the root with its component of a checkpoint. ``label`` names the folder for what it replaces."""
        self.root = root
        self._reader, self._component, self._label = reader, component, label
        self._excluded = capture.excluded(root)
        self._table = capture.tables[root.name]
        self._known: Contents = self._table.contents()
        self._differing: list[TreeEntry] = []
        self._directories: list[TreeDirectory] = []
        self._same: list[tuple[TreeFile, FileNode]] = []
        self._kept: set[str] = set()
        self._nodes: dict[str, FileNode] = {}
        with open_directory(root.path) as top:
            self._compare(top)

    @property
    def needed_bytes(self) -> int:
        """The space that what differs needs."""
        files = (entry.content for entry in self._differing if isinstance(entry, TreeFile))
        chunks = (ref for content in files for ref in self._reader.content_chunks(content))
        return sum(ref.length for ref in chunks if not is_zero(ref))

    def apply(self, report: InPlaceReport, progress: Callable[[int], None] = lambda _: None) -> int:
        """Make the root equal to the checkpoint; return the bytes written. ``progress`` receives their total."""
        written = 0

        def count(size: int) -> None:
            nonlocal written
            written += size
            progress(written)

        with open_directory(self.root.path) as top, Target(top) as target:
            for entry, node in self._same:
                self._restore_stat(top, entry, node)
            in_the_way = [entry.path for entry in self._differing if entry.path not in self._nodes]
            removed = [path for path in self._nodes if path not in self._kept]
            removed += [path for path in in_the_way if _exists(top, path)]  # no file or folder, such as a pipe
            changed = [*removed, *(entry.path for entry in self._differing)]
            with WritableFolders(top) as folders:
                folders.unlock({path.rpartition("/")[0] for path in changed} & self._nodes.keys())
                self._remove(top, removed, report)
                self._restore(target, report, count)
            for folder in reversed(self._directories):
                target.finish_directory(folder.path, folder.mode, folder.mtime_ns, folder.owner)
        return written

    def _compare(self, top: int) -> None:
        nodes = walk(self.root, self._excluded).nodes
        self._nodes = {node.path: node for node in nodes if node.path.partition("/")[0] != LOST_AND_FOUND}
        for entry in self._reader.tree_entries(self._component):
            if self._excluded.covers(entry.path) or entry.path.partition("/")[0] == LOST_AND_FOUND:
                continue
            node = self._nodes.get(entry.path)
            if isinstance(entry, TreeDirectory):
                self._directories.append(entry)
            if node is not None and self._matches(top, entry, node):
                self._kept.add(entry.path)
                if isinstance(entry, TreeFile):
                    self._same.append((entry, node))
            else:
                self._differing.append(entry)

    def _matches(self, top: int, entry: TreeEntry, node: FileNode) -> bool:
        if isinstance(entry, TreeDirectory):
            return node.is_directory
        if isinstance(entry, TreeSymlink):
            return node.is_symlink and _link_target(top, entry.path) == entry.target
        if not node.is_file or node.signature.size != entry.content.size:
            return False
        return self._known_unchanged(entry, node) or self._content_equals(top, entry)

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
            set_stat(handle, entry.mode, entry.mtime_ns, entry.owner)
        finally:
            os.close(handle)

    def _remove(self, top: int, paths: list[str], report: InPlaceReport) -> None:
        """Move aside what is not in the checkpoint, deepest first; a folder with excluded content stays."""
        if not paths:
            return
        moved: list[str] = []
        with translate_errors("."), new_folder(self.root, top, self._label) as (where, target):
            try:
                for path in sorted(paths, key=_depth, reverse=True):
                    with translate_errors(path), suppress(FileNotFoundError, NotADirectoryError):
                        if _move_path(
                            top, path, target, is_folder=path in self._nodes and self._nodes[path].is_directory
                        ):
                            moved.append(path)
            finally:
                report.removed += len(moved)
                if moved:
                    report.replaced.append(replaced_of(where, sorted(moved)))

    def _restore(self, target: Target, report: InPlaceReport, count: Callable[[int], None]) -> None:
        for entry in self._differing:
            if isinstance(entry, TreeDirectory):
                target.make_directory(entry.path)
            elif isinstance(entry, TreeFile):
                self._restore_file(target, entry, count)
            report.restored += 1
        for entry in self._differing:
            if isinstance(entry, TreeSymlink):
                target.make_symlink(entry.path, entry.target, entry.mtime_ns, entry.owner)

    def _restore_file(self, target: Target, entry: TreeFile, count: Callable[[int], None]) -> None:
        offset = 0
        descriptor = target.create(entry.path)

        def write(piece: bytes) -> None:
            nonlocal offset
            write_data_at(descriptor, offset, memoryview(piece))
            offset += len(piece)
            count(len(piece))

        with translate_errors(entry.path):
            try:
                os.ftruncate(descriptor, entry.content.size)
                self._reader.read_content_into(entry.content, write)
                set_stat(descriptor, entry.mode, entry.mtime_ns, entry.owner)
            finally:
                os.close(descriptor)


def _chunk_ids(content: Content) -> tuple[bytes, ...]:
    return tuple(ref.id for ref in (content.more or content.chunks))


def _exists(top: int, path: str) -> bool:
    parent, _, name = path.rpartition("/")
    try:
        with _opened(top, parent) as folder:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _move_path(top: int, path: str, target: int, *, is_folder: bool) -> bool:
    """Move one path of a root to the same path in another folder; return whether it has left the root.

    Of a folder everything in it was moved before, except for excluded content, with which it stays.
    """
    parent, _, name = path.rpartition("/")
    with _opened(top, parent) as source, _made(target, parent) as destination:
        if not is_folder:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=destination)
            return True
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=destination)
        try:
            os.rmdir(name, dir_fd=source)
        except OSError as error:
            if error.errno not in _KEEPS_FOLDER:
                raise
            return False
        return True


@contextmanager
def _opened(top: int, path: str) -> Iterator[int]:
    folder = open_below(top, path, os.O_RDONLY | os.O_DIRECTORY) if path else os.dup(top)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def _made(top: int, path: str) -> Iterator[int]:
    """Yield a folder below another, which is created with those above it if it is missing."""
    folder = os.dup(top)
    try:
        for name in path.split("/") if path else ():
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


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
