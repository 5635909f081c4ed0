"""Opens the files of one root by the folders in which a walk found them, also if a folder is renamed meanwhile.

Folders are recognised by inode. No link is followed, and no call waits for a pipe. Contents are only compared.
"""

import errno
import hashlib
import os
import stat
import threading
from collections import OrderedDict
from contextlib import suppress
from types import TracebackType
from typing import Final

from savepoint.errors import RunAsUserRequired
from savepoint.repository.format.chunk import BLOCK_BYTES, ZERO_CHUNKS
from savepoint.repository.format.content import Content

from savepoint_sidecar.files.listing import DIRECTORY, FileNode, entries_by_inode, unreadable
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Walk

READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
READ_ERRNOS: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO}
)
"""Errors that concern one file: it cannot be read, and others can."""
_KEPT_FOLDERS: Final = 64
_FIND_ATTEMPTS: Final = 5
_ZERO_LENGTHS: Final = {identity: length for length, identity in ZERO_CHUNKS}
"""Lengths of whole blocks of zeros, by id."""
_SPARSE_BYTES: Final = 1 << 20
"""Smaller files are not checked for holes."""


class RootFiles:
    """A context manager that opens files of one walked root. May be used from several threads."""

    def __init__(self, walked: Walk) -> None:
        self.root: Root = walked.root
        self._inodes = {node.path: node.signature.inode for node in walked.nodes if node.is_directory}
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.RLock()
        self.top = -1
        """The open root."""

    def __enter__(self) -> "RootFiles":
        self.top = os.open(self.root.path, DIRECTORY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
        os.close(self.top)

    def open(self, node: FileNode) -> "OpenFile":
        """Open a file of the walk. RunAsUserRequired if it cannot be read, FileNotFoundError if it was removed."""
        try:
            opened = OpenFile(self._open_node(node))
            if stat.S_ISREG(os.fstat(opened.descriptor).st_mode):
                return opened
            os.close(opened.descriptor)
            raise FileNotFoundError(errno.ENOENT, "no longer a regular file", node.path)
        except OSError as error:
            if error.errno in READ_ERRNOS:
                raise unreadable(self.root, node, error) from error
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise FileNotFoundError(errno.ENOENT, "no longer a regular file", node.path) from error
            raise

    def open_folder(self, path: str) -> int:
        """Open a folder of the walk; the root for an empty path. The caller closes the descriptor."""
        with self._lock:
            return os.dup(self._folder(path))

    def read_link(self, path: str) -> str:
        """Return the target of a symbolic link. OSError if it does not exist any more."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            return os.readlink(name, dir_fd=self._folder(parent))

    def stat(self, path: str) -> os.stat_result:
        """Return the stat of an entry. OSError if it does not exist any more."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            return os.stat(name, dir_fd=self._folder(parent), follow_symlinks=False)

    def allocated_bytes(self, node: FileNode) -> int:
        """Return the room that a copy of the file's data needs, which is less than its size if it is sparse."""
        if node.signature.size < _SPARSE_BYTES:
            return node.signature.size
        try:
            return min(node.signature.size, self.stat(node.path).st_blocks * 512)
        except OSError:
            return node.signature.size

    def _open_node(self, node: FileNode) -> int:
        """Open the file that the walk saw, under any name in its folder; else the one that replaced it."""
        parent, _, name = node.path.rpartition("/")
        size, mtime_ns, _, inode = node.signature
        with self._lock:
            folder = self._folder(parent)
            handle = -1
            with suppress(FileNotFoundError):
                handle = os.open(name, READ, dir_fd=folder)
                if os.fstat(handle).st_ino == inode:
                    return handle
            for other in entries_by_inode(folder, inode):
                with suppress(OSError):
                    moved = os.open(other, READ, dir_fd=folder)
                    status = os.fstat(moved)
                    # numbers of removed files are given to new ones, so the rest of the stat must agree as well
                    if (status.st_ino, status.st_size, status.st_mtime_ns) == (inode, size, mtime_ns):
                        if handle >= 0:
                            os.close(handle)
                        return moved
                    os.close(moved)
        if handle < 0:
            raise FileNotFoundError(errno.ENOENT, "removed after it was listed", node.path)
        return handle

    def _folder(self, path: str) -> int:
        """Return a descriptor of the folder, valid until the lock is released."""
        missing: list[str] = []
        while path and path not in self._open:
            missing.append(path)
            path = path.rpartition("/")[0]
        descriptor = self.top
        if path:
            descriptor = self._open[path]
            self._open.move_to_end(path)
        for each in reversed(missing):
            descriptor = self._open[each] = self._open_folder(descriptor, each)
            if len(self._open) > _KEPT_FOLDERS:
                os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _open_folder(self, parent: int, path: str) -> int:
        """Open a folder by its name or, if that leads elsewhere now, by its inode."""
        inode, name = self._inodes.get(path), path.rpartition("/")[2]
        for _ in range(_FIND_ATTEMPTS):
            names = [name] if inode is None else [name, *entries_by_inode(parent, inode)]
            for each in names:
                with suppress(FileNotFoundError, NotADirectoryError):
                    handle = os.open(each, DIRECTORY, dir_fd=parent)
                    if inode is None or os.fstat(handle).st_ino == inode:
                        return handle
                    os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "moved or removed after it was listed", path)


class OpenFile:
    """A context manager that closes a file's descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def equals_content(files: RootFiles, node: FileNode, content: Content, *, has_holes: bool = False) -> bool:
    """Return whether the file has this content, as far as that can be read now.

    ``has_holes``: the file system's word is taken for where the file has no data.
    """
    try:
        with files.open(node) as handle:
            offset, data_at, piece = 0, 0, bytearray(BLOCK_BYTES)
            for identity in content.chunk_ids():
                length = _ZERO_LENGTHS.get(identity)
                if has_holes and length is not None:
                    if data_at <= offset:
                        data_at = _next_data(handle.descriptor, offset)
                    if offset + length <= data_at:
                        offset += length
                        continue
                count = os.preadv(handle.descriptor, [piece], offset)
                if hashlib.sha256(memoryview(piece)[:count]).digest() != identity:
                    return False
                offset += count
            return offset == content.size == os.fstat(handle.descriptor).st_size
    except (OSError, RunAsUserRequired):
        return False


def _next_data(descriptor: int, offset: int) -> int:
    """Return where the file has data next, or its end if it has none."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(descriptor).st_size
