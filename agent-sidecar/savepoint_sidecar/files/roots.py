"""State roots: the folders that hold an agent's state, and a marker in each that names the checkpoint it is at.

A marker is a hint; only the store is authoritative. Walking a root is ``walk``'s task, content is that of ``capture``
and ``restore``.
"""

import json
import logging
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from savepoint.contract.names import MARKER_DIRECTORY

log = logging.getLogger(__name__)

MARKER_NAME: Final = "marker.json"
MARKER_MAX_BYTES: Final = 4096
MARKER_ATTRIBUTE: Final = "user.savepoint.marker"
IGNORE_NAME: Final = ".gitignore"
"""Keeps git from adding or stashing the marker's folder."""
COMPONENT_PREFIX: Final = "files."
LOST_AND_FOUND: Final = "lost+found"
"""A folder that belongs to the file system itself."""


@dataclass(frozen=True)
class Root:
    """One state folder. This process finds it at ``path``, the agent at ``mount_path``."""

    name: str
    mount_path: str
    path: Path
    persistent: bool = False

    @property
    def component(self) -> str:
        """Name of the checkpoint component that holds this root's file tree."""
        return COMPONENT_PREFIX + self.name


@dataclass(frozen=True)
class Marker:
    """Content of a root: the files of the checkpoint at ``sequence``, or an unfinished restore of it."""

    namespace: str
    agent: str
    pod_uid: str
    epoch: int
    sequence: int
    state: Literal["restoring", "ready"]


def without_shared(roots: tuple[Root, ...], shared: Collection[str]) -> tuple[Root, ...]:
    """Return the roots that only this agent writes, and log each one left out. ``shared`` holds names of roots."""
    for root in roots:
        if root.name in shared:
            log.info(
                "%s is on a ReadWriteMany claim, which other pods may write: it is left out of checkpoints and "
                "restores; name its volume in the policy's spec.state.volumes to include it",
                root.mount_path,
            )
    return tuple(root for root in roots if root.name not in shared)


@contextmanager
def open_directory(path: Path | str, at: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a folder. OSError if it is a symbolic link."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        yield handle
    finally:
        os.close(handle)


def read_marker(root: Root) -> Marker | None:
    """Return the root's marker; None if it is missing or unreadable.

    An agent may remove the file, as ``git clean`` does. Then the copy in the folder's extended attribute counts, but
    not in an empty folder, whose files are lost. Of two different ones the one that demands a restore counts.
    """
    try:
        with open_directory(root.path) as top:
            file, attribute = _marker_of(_read_file(top)), _marker_of(_read_attribute(top))
            if file is None:
                return None if attribute is None or is_empty(root) else attribute
    except OSError:
        return None
    if attribute is None or (attribute.namespace, attribute.agent) != (file.namespace, file.agent):
        return file
    return max(file, attribute, key=lambda each: (each.state == "restoring", each.epoch, each.sequence))


def write_marker(root: Root, marker: Marker) -> None:
    """Replace the root's marker durably. OSError if the root cannot be written."""
    content = json.dumps(asdict(marker)).encode()
    with open_directory(root.path) as top, open_marker_folder(top) as folder:
        _write_new(folder, IGNORE_NAME, b"*\n")
        _write_attribute(top, content)
        name = f".{MARKER_NAME}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o644, dir_fd=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, MARKER_NAME, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
        os.fsync(top)


def _marker_of(content: bytes) -> Marker | None:
    try:
        raw = json.loads(content)
        return Marker(
            str(raw["namespace"]), str(raw["agent"]), str(raw["pod_uid"]), int(raw["epoch"]), int(raw["sequence"]),
            "ready" if raw["state"] == "ready" else "restoring",
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_file(top: int) -> bytes:
    try:
        with open_directory(MARKER_DIRECTORY, top) as folder:
            handle = os.open(MARKER_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(handle, "rb") as file:
                return file.read(MARKER_MAX_BYTES)
    except OSError:
        return b""


def _read_attribute(top: int) -> bytes:
    try:
        return os.getxattr(top, MARKER_ATTRIBUTE)[:MARKER_MAX_BYTES]
    except OSError:  # not set, or not supported by the file system
        return b""


def _write_attribute(top: int, content: bytes) -> None:
    """Set the attribute where the file system has them. An older one never stays beside a newer file."""
    try:
        os.setxattr(top, MARKER_ATTRIBUTE, content)
    except OSError:
        with suppress(OSError):
            os.removexattr(top, MARKER_ATTRIBUTE)


def _write_new(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileExistsError):
        handle = os.open(name, flags, 0o644, dir_fd=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)


def is_empty(root: Root) -> bool:
    """Return whether the root holds nothing but a marker and the file system's ``lost+found``."""
    with os.scandir(root.path) as entries:
        return all(entry.name in (MARKER_DIRECTORY, LOST_AND_FOUND) for entry in entries)


def entries_to_clear(root: Root) -> Iterator[os.stat_result]:
    """Yield the lstat of each entry that ``clear`` would remove. OSError if the root cannot be read.

    Nothing is changed, and no link is followed. A folder that may not be listed is yielded without its contents.
    """
    with open_directory(root.path) as top:
        yield from _entries_below(top, (MARKER_DIRECTORY, LOST_AND_FOUND))


def clear(root: Root, *, keep_marker: bool = True) -> None:
    """Remove everything in the root but the folder itself. Links are removed, never followed."""
    with open_directory(root.path) as top:
        for name in os.listdir(top):  # noqa: PTH208 - below an open descriptor
            if name == LOST_AND_FOUND or (keep_marker and name == MARKER_DIRECTORY):
                continue
            remove(top, name)


def remove(parent: int, name: str) -> None:
    """Remove one entry of an open folder and everything below it."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(name, dir_fd=parent)
        return
    with _opened_for_removal(parent, name) as folder:
        for each in os.listdir(folder):  # noqa: PTH208 - below an open descriptor
            remove(folder, each)
    os.rmdir(name, dir_fd=parent)


def _entries_below(folder: int, skip: Collection[str] = ()) -> Iterator[os.stat_result]:
    for name in os.listdir(folder):
        if name in skip:
            continue
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        yield status
        if stat.S_ISDIR(status.st_mode):
            with suppress(PermissionError), open_directory(name, folder) as inner:
                yield from _entries_below(inner)


@contextmanager
def _opened_for_removal(parent: int, name: str) -> Iterator[int]:
    try:
        with open_directory(name, parent) as folder:
            os.fchmod(folder, 0o700)
            yield folder
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        with open_directory(name, parent) as folder:
            yield folder


@contextmanager
def open_marker_folder(top: int) -> Iterator[int]:
    """Yield a descriptor of the ``.savepoint`` folder in an open root; create the folder if it is missing."""
    try:
        mode = os.stat(MARKER_DIRECTORY, dir_fd=top, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(MARKER_DIRECTORY, dir_fd=top)
            os.mkdir(MARKER_DIRECTORY, 0o755, dir_fd=top)
    except FileNotFoundError:
        os.mkdir(MARKER_DIRECTORY, 0o755, dir_fd=top)
    with open_directory(MARKER_DIRECTORY, top) as folder:
        yield folder
