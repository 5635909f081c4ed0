"""Restores a file tree. The whole tree is checked before the first write, and every byte before it is written.

Order of writes: files, symbolic links, then times and modes of directories. It neither clears the target nor decides
whether it may be written (the sidecar's markers do), and requires that the names are free.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from savepoint.repository.format.chunk import ChunkRef, is_zero
from savepoint.repository.format.content import Content
from savepoint.repository.format.manifest import ComponentRecord
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.read.fetch import Wanted
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.target import (
    Target,
    set_stat,
    sync_file_system,
    translate_errors,
    write_data_at,
)

BATCH_BYTES = 32 << 20
BATCH_CHUNKS = 2048
KEPT_ENTRIES = 50_000
"""The number of entries of the first pass that are kept for the second; a larger tree is read twice."""
OPEN_FILES = 64

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """The totals of a tree, or of what a restore created."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    allocated: int = field(default=0, compare=False)
    """The bytes without whole blocks of zeros, which need no room: they become holes."""
    owners: Mapping[int, int] = field(default_factory=dict, compare=False)
    """The number of entries by the uid that they belonged to; empty if the tree does not record owners."""


@dataclass(slots=True)
class _Piece:
    """The place of a chunk: an offset in a file. A file of one chunk has no descriptor until its content arrives."""

    file: TreeFile
    offset: int
    descriptor: int | None


def survey(reader: CheckpointReader, component: ComponentRecord) -> RestoreReport:
    """Check a whole tree except its content: order, paths, sizes and references. Return its totals."""
    return _survey(reader, component)[0]


def restore_tree(
    reader: CheckpointReader,
    component: ComponentRecord,
    directory: str | os.PathLike[str] | int,
    *,
    progress: Callable[[int], None] | None = None,
    durable: bool = True,
) -> RestoreReport:
    """Restore a component of layout tree.

    Args:
        reader: The checkpoint's reader.
        component: The component to restore.
        directory: The target, as a path or an open descriptor.
        progress: Called with the number of bytes written so far, from several threads.
        durable: Sync the file system before returning.

    Returns:
        What was created.

    Raises:
        IntegrityError: A path, size or reference of the tree is invalid, and nothing was written; or a chunk is
            damaged, and what was written so far stays.
        NoSpace, TargetNotEmpty, RunAsUserRequired, TargetUnusable: The target cannot be written.
    """
    report, kept = _survey(reader, component)
    with translate_errors(os.fsdecode(directory) if not isinstance(directory, int) else "."):
        root = os.dup(directory) if isinstance(directory, int) else os.open(directory, _DIRECTORY)
    try:
        entries = kept if kept is not None else reader.tree_entries(component)
        with _Restorer(reader, root, progress) as restorer:
            restorer.restore(entries)
        if durable:
            sync_file_system(root)
    finally:
        os.close(root)
    return report


def _survey(reader: CheckpointReader, component: ComponentRecord) -> tuple[RestoreReport, list[TreeEntry] | None]:
    files = directories = symlinks = size = allocated = 0
    owners: Counter[int] = Counter()
    kept: list[TreeEntry] | None = []
    for entry in reader.tree_entries(component):
        if isinstance(entry, TreeFile):
            files += 1
            size += entry.content.size
            for ref in reader.content_chunks(entry.content):
                reader.fetcher.check(ref)
                allocated += 0 if is_zero(ref) else ref.length
            for ref in entry.content.more:
                reader.fetcher.check(ref)
        elif isinstance(entry, TreeDirectory):
            directories += 1
        else:
            symlinks += 1
        if entry.owner is not None:
            owners[entry.owner.uid] += 1
        if kept is not None:
            kept.append(entry)
            if len(kept) > KEPT_ENTRIES:
                kept = None
    return RestoreReport(files, directories, symlinks, size, allocated, owners), kept


class _Restorer:
    """Writes entries in batches, so that neighbouring chunks of a pack are read at once, whichever files need them."""

    def __init__(self, reader: CheckpointReader, root: int, progress: Callable[[int], None] | None) -> None:
        self._reader, self._root = reader, root
        self._target = Target(root)
        self._local = threading.local()
        self._targets: list[Target] = []
        self._progress, self._done, self._lock = progress, 0, threading.Lock()
        self._wanted: list[Wanted[_Piece]] = []
        self._wanted_bytes = 0
        self._open: dict[int, TreeFile] = {}
        self._complete: list[int] = []

    def __enter__(self) -> "_Restorer":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        for target in [self._target, *self._targets]:
            target.close()

    def restore(self, entries: Iterable[TreeEntry]) -> None:
        """Restore all entries, in the safe order."""
        directories: list[TreeDirectory] = []
        symlinks: list[TreeSymlink] = []
        for entry in entries:
            if isinstance(entry, TreeDirectory):
                self._target.make_directory(entry.path)
                directories.append(entry)
            elif isinstance(entry, TreeSymlink):
                symlinks.append(entry)
            else:
                self._plan(entry)
        self._flush()
        for link in symlinks:
            self._target.make_symlink(link.path, link.target, link.mtime_ns, link.owner)
        for directory in reversed(directories):
            self._target.finish_directory(directory.path, directory.mode, directory.mtime_ns, directory.owner)

    def _plan(self, file: TreeFile) -> None:
        if len(file.content.chunks) == 1 and not file.content.more:
            self._want(file.content.chunks[0], _Piece(file, 0, None))
            return
        descriptor = self._target.create(file.path)
        if not file.content.size:
            self._finish_file(descriptor, file)
            return
        self._open[descriptor] = file
        with translate_errors(file.path):
            os.ftruncate(descriptor, file.content.size)
        for offset, ref in _with_offsets(self._reader, file.content):
            if is_zero(ref):
                self._report(ref.length)  # it stays a hole
            else:
                self._want(ref, _Piece(file, offset, descriptor))
        self._complete.append(descriptor)
        if len(self._open) >= OPEN_FILES:
            self._flush()

    def _want(self, ref: ChunkRef, piece: _Piece) -> None:
        self._wanted.append(Wanted(ref, piece))
        self._wanted_bytes += ref.length
        if self._wanted_bytes >= BATCH_BYTES or len(self._wanted) >= BATCH_CHUNKS:
            self._flush()

    def _flush(self) -> None:
        wanted, self._wanted, self._wanted_bytes = self._wanted, [], 0
        self._reader.fetcher.fetch(wanted, self._write)
        for descriptor in self._complete:
            file = self._open.pop(descriptor)
            self._finish_file(descriptor, file)
        self._complete.clear()

    def _write(self, piece: _Piece, content: memoryview) -> None:
        file = piece.file
        with translate_errors(file.path):
            if piece.descriptor is not None:
                write_data_at(piece.descriptor, piece.offset, content)
            else:
                descriptor = self._thread_target().create(file.path)
                try:
                    os.ftruncate(descriptor, len(content))
                    write_data_at(descriptor, 0, content)
                    set_stat(descriptor, file.mode, file.mtime_ns, file.owner)
                finally:
                    os.close(descriptor)
        self._report(len(content))

    def _report(self, count: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += count
                done = self._done
            self._progress(done)

    def _finish_file(self, descriptor: int, file: TreeFile) -> None:
        with translate_errors(file.path):
            try:
                set_stat(descriptor, file.mode, file.mtime_ns, file.owner)
            finally:
                os.close(descriptor)

    def _thread_target(self) -> Target:
        target: Target | None = getattr(self._local, "target", None)
        if target is None:
            target = self._local.target = Target(self._root)
            with self._lock:
                self._targets.append(target)
        return target


def _with_offsets(reader: CheckpointReader, content: Content) -> Iterator[tuple[int, ChunkRef]]:
    offset = 0
    for ref in reader.content_chunks(content):
        yield offset, ref
        offset += ref.length
