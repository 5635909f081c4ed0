"""The agent's part of the stage volume: files that the sidecar reads after the pause.

A file named in a flush does not change until the result of that transaction. The module decides nothing about content.
It is not thread-safe: the caller holds the agent's lock.
"""

import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from savepoint.contract import stage_layout
from savepoint.errors import DISK_FULL_ERRNOS, SavepointError, StageFull, Unavailable


class Stage:
    """The stage volume at ``root``. Files that a former process left below ``agent/`` are removed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._agent_folder = stage_layout.agent_folder(root)
        self._folders_created = 0
        try:
            self._agent_folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # the sidecar reads here
            for left in self._agent_folder.iterdir():  # removed, not overwritten: a reader may have the old files open
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        except OSError as error:
            raise stage_error(error, self._agent_folder) from error

    def new_folder(self, stem: str) -> Path:
        """Create a folder below ``agent/`` and return it."""
        self._folders_created += 1
        path = self._agent_folder / f"{stem}-{self._folders_created}"
        try:
            path.mkdir(mode=0o755)
        except OSError as error:
            raise stage_error(error, path) from error
        return path

    def relative(self, path: Path) -> str:
        """Return the path by which the protocol names a file of the stage."""
        return path.relative_to(self.root).as_posix()

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        """Write a new file with these bytes. Raises StageFull, Unavailable."""
        try:
            with path.open("xb", buffering=0) as file:
                for part in parts:
                    data = memoryview(part)
                    while data:
                        data = data[file.write(data) or 0 :]
        except OSError as error:
            raise stage_error(error, path) from error

    def copy_in(self, source: Path, path: Path) -> None:
        """Copy a restored file. Raises StageFull, Unavailable."""
        try:
            shutil.copyfile(source, path)
        except OSError as error:
            raise stage_error(error, path) from error

    def remove(self, folder: Path) -> None:
        """Remove a folder below ``agent/``."""
        shutil.rmtree(folder, ignore_errors=True)


def create_mapped(path: Path, size: int) -> mmap.mmap:
    """Create a file of ``size`` > 0 bytes and return it mapped for writing. Raises StageFull, Unavailable.

    The space is allocated first: a write to a mapped page for which the volume has no room would kill the process.
    """
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            for offset in range(0, size, 1 << 20):
                os.pwrite(descriptor, bytes(min(1 << 20, size - offset)), offset)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return mmap.mmap(descriptor, size, flags=flags)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise stage_error(error, path) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def open_stage(root: str | None) -> Stage:
    """Return the agent's part of the stage volume. Raises Unavailable if the environment names none."""
    if not root:
        raise Unavailable("SAVEPOINT_STAGE is not set: the agent and its sidecar need a folder that both can write")
    return Stage(Path(root))


def stage_error(error: OSError, path: Path) -> SavepointError:
    """Return the SavepointError for a failed call on a stage file."""
    if error.errno in DISK_FULL_ERRNOS:
        return StageFull(f"the stage volume has no room for {path.name}: make it larger; the agent continues")
    return Unavailable(f"stage file {path.name}: {error.strerror}")
