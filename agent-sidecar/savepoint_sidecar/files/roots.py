"""The folders that hold an agent's state, and the marker in each that says which cut stands there.

A marker is a hint, never proof: what counts is in the store. It does not walk, read or restore content.
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
COMPONENT_PREFIX: Final = "files."
LOST_AND_FOUND: Final = "lost+found"
"""The file system's own folder."""


@dataclass(frozen=True)
class Root:
    """One state folder. ``path`` is where this process sees it; ``mount_path`` is where the agent does."""

    name: str
    mount_path: str
    path: Path
    persistent: bool = False

    @property
    def component(self) -> str:
        """Name of the component that holds this root's tree."""
        return COMPONENT_PREFIX + self.name


@dataclass(frozen=True)
class Marker:
    """What stands in a root: the cut ``sequence`` of this lineage, or something half written."""

    namespace: str
    agent: str
    pod_uid: str
    epoch: int
    sequence: int
    state: Literal["restoring", "ready"]


def without_shared(roots: tuple[Root, ...], shared: Collection[str]) -> tuple[Root, ...]:
    """The roots that are this agent's alone, and a line in the log for each other one. ``shared``: by their names."""
    for root in roots:
        if root.name in shared:
            log.info(
                "%s lies on a ReadWriteMany claim, which other pods may write: it is left out of checkpoints and "
                "restores, unless the policy's spec.state.volumes names its volume",
                root.mount_path,
            )
    return tuple(root for root in roots if root.name not in shared)


@contextmanager
def directory(path: Path | str, at: int | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no symbolic link."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        yield handle
    finally:
        os.close(handle)


def read_marker(root: Root) -> Marker | None:
    """The root's marker; None if there is none that can be read."""
    try:
        with directory(root.path) as top, directory(MARKER_DIRECTORY, top) as folder:
            handle = os.open(MARKER_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(handle, "rb") as file:
                raw = json.loads(file.read(MARKER_MAX_BYTES))
        return Marker(
            str(raw["namespace"]), str(raw["agent"]), str(raw["pod_uid"]), int(raw["epoch"]), int(raw["sequence"]),
            "ready" if raw["state"] == "ready" else "restoring",
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_marker(root: Root, marker: Marker) -> None:
    """Replace the root's marker, durably. OSError if the root cannot be written."""
    with directory(root.path) as top, _marker_folder(top) as folder:
        name = f".{MARKER_NAME}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o644, dir_fd=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(asdict(marker)).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, MARKER_NAME, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def is_empty(root: Root) -> bool:
    """Whether nothing but our own marker and the file system's own ``lost+found`` is there."""
    with os.scandir(root.path) as entries:
        return all(entry.name in (MARKER_DIRECTORY, LOST_AND_FOUND) for entry in entries)


def would_clear(root: Root) -> Iterator[os.stat_result]:
    """What ``clear`` would remove, each as lstat has it. Nothing is changed or followed; OSError if it cannot be read.

    A folder that may not be listed counts without what it holds.
    """
    with directory(root.path) as top:
        yield from _below(top, (MARKER_DIRECTORY, LOST_AND_FOUND))


def clear(root: Root, *, keep_marker: bool = True) -> None:
    """Remove everything in the root, and leave the folder itself; links are removed, never followed."""
    with directory(root.path) as top:
        for name in os.listdir(top):  # noqa: PTH208 - below an open descriptor
            if name == LOST_AND_FOUND or (keep_marker and name == MARKER_DIRECTORY):
                continue
            remove(top, name)


def remove(parent: int, name: str) -> None:
    """Remove one entry of an open folder, with everything below it."""
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


def _below(folder: int, without: Collection[str] = ()) -> Iterator[os.stat_result]:
    for name in os.listdir(folder):
        if name in without:
            continue
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        yield status
        if stat.S_ISDIR(status.st_mode):
            with suppress(PermissionError), directory(name, folder) as inner:
                yield from _below(inner)


@contextmanager
def _opened_for_removal(parent: int, name: str) -> Iterator[int]:
    try:
        with directory(name, parent) as folder:
            os.fchmod(folder, 0o700)
            yield folder
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        with directory(name, parent) as folder:
            yield folder


@contextmanager
def _marker_folder(top: int) -> Iterator[int]:
    try:
        mode = os.stat(MARKER_DIRECTORY, dir_fd=top, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(MARKER_DIRECTORY, dir_fd=top)
            os.mkdir(MARKER_DIRECTORY, 0o755, dir_fd=top)
    except FileNotFoundError:
        os.mkdir(MARKER_DIRECTORY, 0o755, dir_fd=top)
    with directory(MARKER_DIRECTORY, top) as folder:
        yield folder
