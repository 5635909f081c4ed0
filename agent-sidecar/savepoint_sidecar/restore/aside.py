"""Moves a root's files out of the way of a restore, which then replaces them without deleting anything.

They are kept in the root's own ``.savepoint`` folder, which no checkpoint holds: on the same file system, where a move
is one rename. Nothing here removes them.
"""

import os
import stat
from typing import Final

from savepoint.contract.names import MARKER_DIRECTORY

from savepoint_sidecar.files.roots import LOST_AND_FOUND, Root, open_directory, open_marker_folder

PREFIX: Final = "replaced-"
_MODE_BITS: Final = 0o7777


def move_aside(root: Root, label: str) -> tuple[str, list[str]]:
    """Move everything in the root into a new folder in its ``.savepoint`` folder.

    Args:
        root: The root. Its marker and the file system's ``lost+found`` stay.
        label: Distinguishes this move from others, such as a time.

    Returns:
        The path of the new folder, and the names that were moved into it. Without any, no folder is created.

    Raises:
        OSError: An entry cannot be moved, for example because a file system is mounted there. The others are moved.
    """
    with open_directory(root.path) as top:
        names = sorted(each for each in os.listdir(top) if each not in (MARKER_DIRECTORY, LOST_AND_FOUND))  # noqa: PTH208 - below an open descriptor
        if not names:
            return "", []
        with open_marker_folder(top) as folder:
            taken = set(os.listdir(folder))  # noqa: PTH208 - as above
            name = next(each for each in _candidates(label) if each not in taken)
            os.mkdir(name, 0o700, dir_fd=folder)
            with open_directory(name, folder) as target:
                for each in names:
                    _move(top, each, target)
                os.fsync(target)
            os.fsync(top)
    return f"{root.mount_path.rstrip('/')}/{MARKER_DIRECTORY}/{name}", names


def _candidates(label: str) -> list[str]:
    return [PREFIX + label, *(f"{PREFIX}{label}-{number}" for number in range(2, 1000))]


def _move(source: int, name: str, target: int) -> None:
    """Rename an entry. A folder must be writable to be moved: its parent is recorded in it."""
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IRWXU == stat.S_IRWXU:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        return
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        mode = status.st_mode & _MODE_BITS
        os.chmod(f"/proc/self/fd/{handle}", mode | stat.S_IRWXU)  # noqa: PTH101 - a handle, not a path
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        finally:
            os.chmod(f"/proc/self/fd/{handle}", mode)  # noqa: PTH101 - as above
    finally:
        os.close(handle)
