"""State roots: the folders that hold an agent's state.

Their markers are read and written by ``restore.markers``. Walking a root is ``walk``'s task, content is that of
``capture`` and ``restore``.
"""

import logging
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from savepoint.contract.names import MARKER_DIRECTORY

log = logging.getLogger(__name__)

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


def is_empty(root: Root) -> bool:
    """Return whether the root holds nothing but a marker and the file system's ``lost+found``."""
    with os.scandir(root.path) as entries:
        return all(entry.name in (MARKER_DIRECTORY, LOST_AND_FOUND) for entry in entries)


def entries_to_clear(root: Root) -> Iterator[os.stat_result]:
    """Yield the lstat of each entry that ``clear`` would remove. OSError if the root cannot be read.

    Nothing is changed, and no link is followed. A folder that may not be listed is yielded without its contents.
    """
    with open_directory(root.path) as top:
        yield from entries_below(top, (MARKER_DIRECTORY, LOST_AND_FOUND))


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


def entries_below(folder: int, skip: Collection[str] = ()) -> Iterator[os.stat_result]:
    """Yield the lstat of each entry below an open folder, without those at its top that ``skip`` names."""
    for name in os.listdir(folder):
        if name in skip:
            continue
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        yield status
        if stat.S_ISDIR(status.st_mode):
            with suppress(PermissionError), open_directory(name, folder) as inner:
                yield from entries_below(inner)


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
