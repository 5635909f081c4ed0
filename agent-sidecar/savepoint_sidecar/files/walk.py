"""Walks a state root: lists every entry with its stat, by folder descriptors and never through a link.

The walk is repeated until nothing moved under it. It reads no content, and keeps nothing between walks
(``capture.file_table`` does).
"""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from savepoint.errors import RunAsUserRequired
from savepoint.repository.format.tree import MAX_FILE_BYTES, path_bytes, path_problem

from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.listing import FileNode, FolderLister, Signature, open_below, unreadable
from savepoint_sidecar.files.roots import Root, open_directory

__all__ = ["FileNode", "Signature", "Walk", "open_below", "signature_of", "unreadable", "walk"]

WALK_ATTEMPTS: Final = 8
"""Number of times that the folders which changed during the walk are listed again."""
WALK_NS: Final = 2_000_000_000
"""No further attempt begins after this time."""

_SURELY_SHORT: Final = 1024
"""Characters of a path that need not be checked if they are ASCII."""
_SHOWN_CHARACTERS: Final = 200
_PATH = attrgetter("path")
_TYPE_BITS = 0o170000
_SUPPORTED_TYPES = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})


@dataclass
class Walk:
    """All entries of one root, sorted by the bytes of their paths as the repository format requires."""

    root: Root
    nodes: list[FileNode] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Sockets, pipes and devices, which no checkpoint can hold: a text with the reason, by path."""
    impossible: dict[str, str] = field(default_factory=dict)
    """Files, folders and links beyond a limit of the format: a text with the reason, by path. They are left out."""
    unreadable: dict[str, RunAsUserRequired] = field(default_factory=dict)
    """Folders that this process may not read, by path. They are left out with everything in them."""
    unsettled: tuple[str, ...] = ()
    """Folders whose entries still changed when the walk ended; an empty path is the root itself."""

    @property
    def file_bytes(self) -> int:
        """Total size of all files, in bytes."""
        return sum(node.signature.size for node in self.nodes if node.is_file)

    @property
    def file_count(self) -> int:
        """Number of files."""
        return sum(1 for node in self.nodes if node.is_file)


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature in a stat result."""
    return Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def walk(
    root: Root,
    excluded: Excluded,
    check: Callable[[], None] = lambda: None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Walk:
    """Walk the root until nothing vanished, appeared or moved under the walk, bounded in attempts and time.

    RunAsUserRequired if more folders may not be read than there are files: this process runs as the wrong user.

    Args:
        root: The root.
        excluded: Its exclude patterns.
        check: Called between folders; may raise to end the walk.
        clock_ns: The time in nanoseconds, by the clock of the file system's time stamps.
    """
    found = Walk(root)
    with open_directory(root.path) as top:
        lister = FolderLister(root, top, excluded, check, clock_ns)
        until = clock_ns() + WALK_NS
        for _ in range(WALK_ATTEMPTS):
            unsettled = lister.list_missing()
            unsettled |= lister.changed_folders()
            if not unsettled or clock_ns() > until:
                break
        unsettled |= lister.list_missing()
        _assemble(found, lister, excluded)
    found.unsettled = tuple(sorted(unsettled))
    if len(found.unreadable) > found.file_count:
        raise next(iter(found.unreadable.values()))
    return found


def _assemble(found: Walk, lister: FolderLister, excluded: Excluded) -> None:
    """Put the listings together under the folders' latest paths."""
    paths = {key: path for path, key in lister.reachable()}
    for key, folder in paths.items():
        listing = lister.listings[key]
        inner = {node.path: key for node, key in listing.folders}
        for listed in listing.nodes:
            node = listed
            if listing.path != folder:
                name = node.path.rpartition("/")[2]
                node = node._replace(path=f"{folder}/{name}" if folder else name)
            path, kind = node.path, node.mode & _TYPE_BITS
            if excluded(path):
                continue
            if kind not in _SUPPORTED_TYPES:
                found.skipped[path] = f"{path!r} {_unsupported_type(kind)}"
                continue
            problem = _limit_problem(node, kind)
            if problem:
                found.impossible[path] = f"{_shortened(path)} {problem}"
                continue
            if kind == stat.S_IFDIR and paths.get(inner[listed.path]) != path:
                if path in lister.unreadable:
                    found.unreadable[path] = lister.unreadable[path]
                continue
            found.nodes.append(node)
    all_ascii = all(node.path.isascii() for node in found.nodes)
    found.nodes.sort(key=_PATH if all_ascii else _path_bytes)


def _limit_problem(node: FileNode, kind: int) -> str:
    """Return why the format cannot hold the entry; empty if it can."""
    if kind == stat.S_IFREG and node.signature.size > MAX_FILE_BYTES:
        return f"is larger than {MAX_FILE_BYTES >> 40} TiB, the most that a checkpoint can hold of one file"
    return path_problem(node.path) if len(node.path) > _SURELY_SHORT or not node.path.isascii() else ""


def _shortened(path: str) -> str:
    """Return a path for a message: of a very long one its beginning and its end."""
    if len(path) <= _SHOWN_CHARACTERS:
        return repr(path)
    half = _SHOWN_CHARACTERS // 2
    return f"{path[:half]!r}…{path[-half:]!r}"


def _unsupported_type(kind: int) -> str:
    kinds = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "named pipe", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return f"is a {kinds.get(kind, 'special file')}, which a checkpoint cannot hold"


def _path_bytes(node: FileNode) -> bytes:
    return path_bytes(node.path)
