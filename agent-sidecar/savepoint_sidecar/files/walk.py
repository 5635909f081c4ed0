"""Walks a state root: lists every entry with its stat, by folder descriptors and never through a link.

It reads no content, and keeps nothing between walks (``capture.file_table`` does).
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from savepoint.contract.names import ANNOTATION_RUN_AS_USER
from savepoint.errors import RunAsUserRequired
from savepoint.repository.format.tree import path_bytes, path_problem

from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root, open_directory

_PATH = attrgetter("path")
_TYPE_BITS = 0o170000
_SUPPORTED_TYPES = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})


class Signature(NamedTuple):
    """The part of a file's stat that shows, without reading it, that the file has not changed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class FileNode(NamedTuple):
    """One file, folder or link in a root. ``path`` is relative; bytes that are not UTF-8 are surrogate escapes."""

    path: str
    mode: int
    """Type and permissions, as in stat."""
    signature: Signature
    uid: int

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """True for a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for a symbolic link."""
        return stat.S_ISLNK(self.mode)


@dataclass
class Walk:
    """All entries of one root, sorted by the bytes of their paths as the repository format requires."""

    root: Root
    nodes: list[FileNode] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Entries that no checkpoint can hold, each with the reason, for the log."""

    @property
    def file_bytes(self) -> int:
        """Total size of all files, in bytes."""
        return sum(node.signature.size for node in self.nodes if node.is_file)


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature in a stat result."""
    return Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def walk(root: Root, excluded: Excluded, check: Callable[[], None] = lambda: None) -> Walk:
    """Walk the root. ``check`` is called once for each folder and may raise to end the walk.

    RunAsUserRequired if a folder belongs to another uid and this one may not read it. Entries that disappear during the
    walk are left out.
    """
    found = Walk(root)
    pending = [""]
    with open_directory(root.path) as top:
        while pending:
            check()
            folder = pending.pop()
            for node in _entries(top, folder, root):
                path, kind = node.path, node.mode & _TYPE_BITS
                if excluded(path):
                    continue
                if kind not in _SUPPORTED_TYPES or len(path) > 1024 or not path.isascii():
                    reason = _unsupported_type(kind) or path_problem(path)
                    if reason:
                        found.skipped.append(f"{path!r} {reason}")
                        continue
                found.nodes.append(node)
                if kind == stat.S_IFDIR:
                    pending.append(path)
    all_ascii = all(node.path.isascii() for node in found.nodes)
    found.nodes.sort(key=_PATH if all_ascii else _path_bytes)
    return found


def open_below(top: int, path: str, flags: int) -> int:
    """Open a path below an open folder, following no link in any element. The caller closes the descriptor."""
    *folders, name = path.split("/")
    current = top
    try:
        for each in folders:
            below = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            if current != top:
                os.close(current)
            current = below
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    finally:
        if current != top:
            os.close(current)


def unreadable(root: Root, path: str, uid: int, mode: int) -> RunAsUserRequired:
    """Return the error for an entry that this process may not read."""
    full_path = f"{root.mount_path.rstrip('/')}/{path}"
    if uid != os.geteuid():
        return RunAsUserRequired(
            f"cannot read {full_path}: it belongs to uid {uid}, and the sidecar runs as uid {os.geteuid()}. "
            f"Set runAsUser: {uid} on the agent's container, or annotate the pod template with "
            f'{ANNOTATION_RUN_AS_USER}: "{uid}".'
        )
    return RunAsUserRequired(
        f"cannot read {full_path}: its mode {stat.S_IMODE(mode):03o} denies even its owner, uid {uid}. "
        "Make it readable, or exclude it in the policy."
    )


def _entries(top: int, folder: str, root: Root) -> list[FileNode]:
    try:
        handle = open_below(top, folder, os.O_RDONLY | os.O_DIRECTORY) if folder else os.dup(top)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.EACCES:
            status = os.stat(folder, dir_fd=top, follow_symlinks=False)
            raise unreadable(root, folder, status.st_uid, status.st_mode) from error
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return []
        raise
    prefix = f"{folder}/" if folder else ""
    nodes = []
    try:
        with os.scandir(handle) as entries:
            for entry in entries:  # keep this loop lean: the agent may be paused meanwhile
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                signature = Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                nodes.append(FileNode(prefix + entry.name, status.st_mode, signature, status.st_uid))
    finally:
        os.close(handle)
    return nodes


def _unsupported_type(kind: int) -> str:
    if kind in _SUPPORTED_TYPES:
        return ""
    kinds = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "named pipe", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return f"is a {kinds.get(kind, 'special file')}, which a checkpoint cannot hold"


def _path_bytes(node: FileNode) -> bytes:
    return path_bytes(node.path)
