"""Lists the folders of a state root, and finds out which of them changed while they were listed.

A folder is known by its inode, not by its path: one that is renamed meanwhile keeps its entries. ``walk`` puts the
folders together; contents of files are not read.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from savepoint.contract.names import ANNOTATION_RUN_AS_USER
from savepoint.errors import RunAsUserRequired
from savepoint.repository.format.tree import path_problem

from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LIST_ATTEMPTS: Final = 10
"""Number of times that a folder is listed in a row if its entries are renamed or removed meanwhile."""
TICK_NS: Final = 20_000_000
"""A folder whose stamp is younger than this may change again under the same stamp."""
_PATH_MAX_BYTES: Final = 4000


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
    gid: int

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


FolderKey = tuple[int, int]
"""Device and inode of a folder."""


@dataclass(slots=True)
class Listing:
    """The entries of one folder at one moment."""

    path: str
    """The path under which the folder was listed."""
    stamps: tuple[int, int]
    """The folder's own mtime and ctime before it was listed."""
    nodes: list[FileNode] = field(default_factory=list)
    folders: list[tuple[FileNode, FolderKey]] = field(default_factory=list)
    complete: bool = True
    """False if an entry was removed before its stat could be read."""
    racy: bool = False
    """True if the folder may have changed again under the same stamps."""

    def names(self) -> set[tuple[str, int]]:
        """Return name and inode of each entry."""
        return {(node.path.rpartition("/")[2], node.signature.inode) for node in self.nodes}


class FolderLister:
    """The listings of one root's folders, by inode."""

    def __init__(
        self, root: Root, top: int, excluded: Excluded, check: Callable[[], None], clock_ns: Callable[[], int]
    ) -> None:
        """``top`` is the open root. ``check`` may raise to end the walk."""
        self._root, self._top, self._excluded, self._check, self._clock_ns = root, top, excluded, check, clock_ns
        self.listings: dict[FolderKey, Listing] = {}
        self.unreadable: dict[str, RunAsUserRequired] = {}
        """Folders that may not be listed, by path."""
        status = os.fstat(top)
        self.top_key = (status.st_dev, status.st_ino)

    def list_missing(self) -> set[str]:
        """List every folder that has no listing yet. Return the folders with entries that could not be found."""
        unsettled: set[str] = set()
        if self.top_key not in self.listings:
            self.listings[self.top_key] = self._list(self._top, "")
        for path, key in self.reachable():
            listing = self.listings[key]
            if listing.complete and not any(self._is_missing(node.path, inner) for node, inner in listing.folders):
                continue
            self._check()
            if not self._list_folders_in(path, key):
                unsettled.add(path)
        return unsettled

    def reachable(self) -> Iterator[tuple[str, FolderKey]]:
        """Yield path and key of every listed folder, by the latest listings; a folder's own listing may be replaced."""
        pending = [("", self.top_key)]
        seen: set[FolderKey] = set()
        while pending:
            path, key = pending.pop()
            if key in seen or key not in self.listings:
                continue
            seen.add(key)
            yield path, key
            for node, inner in self.listings[key].folders:
                inner_path = _join(path, node.path.rpartition("/")[2])
                if self._is_captured(inner_path):
                    pending.append((inner_path, inner))

    def changed_folders(self) -> set[str]:
        """Return the folders that are not as listed any more, and list them again."""
        changed: set[str] = set()
        for path, key in list(self.reachable()):
            listing = self.listings[key]
            try:
                status = self._stat(path)
            except OSError:
                changed.add(path)  # it was renamed or removed, so the folder around it has changed too
                continue
            if (status.st_dev, status.st_ino) != key:
                changed.add(path)
                continue
            if (status.st_mtime_ns, status.st_ctime_ns) == listing.stamps and not listing.racy:
                continue
            self._check()
            before = listing.names()
            if not self._list_folders_in(path, key, again=True) or self.listings[key].names() != before:
                changed.add(path)
        return changed

    def _is_missing(self, path: str, key: FolderKey) -> bool:
        return key not in self.listings and path not in self.unreadable and self._is_captured(path)

    def _is_captured(self, path: str) -> bool:
        """Return whether the folder's entries belong to the walk."""
        return not self._excluded(path) and not path_problem(path)

    def _list_folders_in(self, path: str, key: FolderKey, *, again: bool = False) -> bool:
        """List the folder's folders, and the folder itself if they moved. Return whether all were found."""
        try:
            handle = self._open(path)
        except OSError:
            return False
        try:
            status = os.fstat(handle)
            if (status.st_dev, status.st_ino) != key:
                return False
            for _ in range(LIST_ATTEMPTS):
                if again or not self.listings[key].complete:
                    self.listings[key] = self._list(handle, path)
                again = True
                listing = self.listings[key]
                if self._list_missing_in(handle, path, listing) and listing.complete:
                    return True
            return False
        finally:
            os.close(handle)

    def _list_missing_in(self, handle: int, path: str, listing: Listing) -> bool:
        found_all = True
        for node, key in listing.folders:
            name = node.path.rpartition("/")[2]
            inner_path = _join(path, name)
            if not self._is_missing(inner_path, key):
                continue
            try:
                inner = os.open(name, DIRECTORY, dir_fd=handle)
            except (FileNotFoundError, NotADirectoryError):
                found_all = False
                continue
            except OSError as error:
                self.unreadable[inner_path] = unreadable(self._root, node._replace(path=inner_path), error)
                continue
            try:
                status = os.fstat(inner)
                if (status.st_dev, status.st_ino) == key:
                    self.listings[key] = self._list(inner, inner_path)
                else:
                    found_all = False
            except OSError as error:
                self.unreadable[inner_path] = unreadable(self._root, node._replace(path=inner_path), error)
            finally:
                os.close(inner)
        return found_all

    def _list(self, handle: int, path: str) -> Listing:
        """Return the folder's entries. Names come in one call for all but huge folders, so they are of one moment."""
        status = os.fstat(handle)
        stamps = (status.st_mtime_ns, status.st_ctime_ns)
        listing = Listing(path, stamps, racy=max(stamps) > self._clock_ns() - TICK_NS)
        prefix = f"{path}/" if path else ""
        with os.scandir(handle) as entries:
            for entry in entries:  # keep this loop lean: the agent may be paused meanwhile
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    listing.complete = False
                    continue
                signature = Signature(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
                node = FileNode(prefix + entry.name, found.st_mode, signature, found.st_uid, found.st_gid)
                listing.nodes.append(node)
                if stat.S_ISDIR(found.st_mode):
                    listing.folders.append((node, (found.st_dev, found.st_ino)))
        return listing

    def _open(self, path: str) -> int:
        return open_below(self._top, path, os.O_RDONLY | os.O_DIRECTORY) if path else os.dup(self._top)

    def _stat(self, path: str) -> os.stat_result:
        if not path:
            return os.fstat(self._top)
        if len(path) * 4 < _PATH_MAX_BYTES:
            return os.stat(path, dir_fd=self._top, follow_symlinks=False)
        handle = self._open(path)
        try:
            return os.fstat(handle)
        finally:
            os.close(handle)


def open_below(top: int, path: str, flags: int) -> int:
    """Open a path below an open folder, following no link in any element. The caller closes the descriptor."""
    *folders, name = path.split("/")
    current = top
    try:
        for each in folders:
            below = os.open(each, DIRECTORY, dir_fd=current)
            if current != top:
                os.close(current)
            current = below
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    finally:
        if current != top:
            os.close(current)


def unreadable(root: Root, node: FileNode, error: OSError) -> RunAsUserRequired:
    """Return the error for an entry that this process cannot read, with the remedy."""
    full_path = f"{root.mount_path.rstrip('/')}/{node.path}"
    if not isinstance(error, PermissionError):
        return RunAsUserRequired(
            f"cannot read {full_path}: {error.strerror or error}. Repair or remove it, or exclude it in the policy."
        )
    if node.uid != os.geteuid():
        return RunAsUserRequired(
            f"cannot read {full_path}: it belongs to uid {node.uid}, and the sidecar runs as uid {os.geteuid()}. "
            f"Set runAsUser: {node.uid} on the agent's container, or annotate the pod template with "
            f'{ANNOTATION_RUN_AS_USER}: "{node.uid}".',
            node.uid,
        )
    return RunAsUserRequired(
        f"cannot read {full_path}: its mode {stat.S_IMODE(node.mode):03o} denies even its owner, uid {node.uid}. "
        "Make it readable, or exclude it in the policy."
    )


def entries_by_inode(folder: int, inode: int) -> Iterator[str]:
    """Yield the names in an open folder that lead to this inode."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.inode() == inode)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
