"""The agent's part of the stage volume: files that the sidecar reads after the pause.

A file that a flush named stays as it is until the result of that transaction. It decides nothing about content, and it
is not thread-safe: the caller holds the agent's lock.
"""

import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from savepoint.contract import stage_layout
from savepoint.errors import DISK_FULL_ERRNOS, SavepointError, StageFull, Unavailable



class Stage:
    """``root`` is the stage volume; what a former process left below ``agent/`` is removed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._own = stage_layout.agent_folder(root)
        self._folders = 0
        try:
            self._own.mkdir(mode=0o755, parents=True, exist_ok=True)  # the sidecar reads here
            for left in self._own.iterdir():  # removed, never overwritten: a reader may still hold the old files
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        except OSError as error:
            raise translated(error, self._own) from error

    def folder(self, stem: str) -> Path:
        """A new folder of our own."""
        self._folders += 1
        path = self._own / f"{stem}-{self._folders}"
        try:
            path.mkdir(mode=0o755)
        except OSError as error:
            raise translated(error, path) from error
        return path

    def relative(self, path: Path) -> str:
        """How the protocol names a file of ours."""
        return path.relative_to(self.root).as_posix()

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        """A new file of these bytes. Raises StageFull."""
        try:
            with path.open("xb", buffering=0) as file:
                for part in parts:
                    data = memoryview(part)
                    while data:
                        data = data[file.write(data) or 0 :]
        except OSError as error:
            raise translated(error, path) from error

    def adopt(self, source: Path, path: Path) -> None:
        """A copy of a restored file."""
        try:
            shutil.copyfile(source, path)
        except OSError as error:
            raise translated(error, path) from error

    def remove(self, folder: Path) -> None:
        """Let a folder of ours go."""
        shutil.rmtree(folder, ignore_errors=True)


def mapped_new(path: Path, size: int) -> mmap.mmap:
    """A new file of ``size`` > 0 bytes, its room taken for sure, mapped for writing. Raises StageFull.

    Room is taken first: a write to a mapped page that the volume has no room for would kill the process.
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
        raise translated(error, path) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def translated(error: OSError, path: Path) -> SavepointError:
    """The door's error for a failed call on the stage."""
    if error.errno in DISK_FULL_ERRNOS:
        return StageFull(f"the stage volume has no room for {path.name}: make it larger; the agent goes on")
    return Unavailable(f"stage file {path.name}: {error.strerror}")
