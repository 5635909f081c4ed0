"""Markers of state roots: each names the agent and the checkpoint that the files in a root belong to.

A marker is a hint; only the store is authoritative. It is kept in three places, because an agent can remove some of
them: a file in the root, which ``git clean`` removes; an extended attribute of the root's folder, which not every file
system has; and a copy in the stage, which is lost with the pod and counts only for the folder it was written for.
"""

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from savepoint.contract import stage_layout
from savepoint.contract.names import MARKER_DIRECTORY

from savepoint_sidecar.files.roots import Root, is_empty, open_directory, open_marker_folder
from savepoint_sidecar.stage.small_files import create_small_file, read_small_file

MARKER_NAME: Final = "marker.json"
MARKER_MAX_BYTES: Final = 4096
MARKER_ATTRIBUTE: Final = "user.savepoint.marker"
IGNORE_NAME: Final = ".gitignore"
"""Keeps git from adding or stashing the marker's folder."""
_GET_GENERATION: Final = 0x80087601
"""``FS_IOC_GETVERSION``: the number that tells a folder from an earlier one with the same inode number."""
_GENERATION_BYTES: Final = 8


@dataclass(frozen=True)
class Marker:
    """Content of a root: the files of the checkpoint at ``sequence`` or newer ones, or an unfinished restore of it."""

    namespace: str
    agent: str
    pod_uid: str
    epoch: int
    sequence: int
    state: Literal["restoring", "ready"]
    attempt: str = ""
    """The latest attempt that captured the root and was offered for commit, whether or not it became a checkpoint."""


def read_marker(root: Root, stage: Path | None = None) -> Marker | None:
    """Return the root's marker; None if it is missing or unreadable.

    An agent may remove the file, as ``git clean`` does. Then the folder's extended attribute or the copy in the stage
    counts, but not in an empty folder, whose files are lost. Of different ones the one that demands a restore counts,
    then the newest.
    """
    try:
        with open_directory(root.path) as top:
            file, others = _marker_of(_read_file(top)), [_marker_of(_read_attribute(top))]
            if stage is not None:
                others.append(_read_copy(stage, root, top))
            if file is None and is_empty(root):
                return None
    except OSError:
        return None
    return _newest(file, [each for each in others if each is not None])


def write_marker(root: Root, marker: Marker, stage: Path | None = None) -> None:
    """Replace the root's marker durably, with its copy in the stage. OSError if the root cannot be written."""
    content = json.dumps(asdict(marker)).encode()
    with open_directory(root.path) as top, open_marker_folder(top) as folder:
        if stage is not None:
            _write_copy(stage, root, top, marker)
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


def _newest(file: Marker | None, others: list[Marker]) -> Marker | None:
    """Return the marker that counts. Markers of another agent than the file's do not count beside it."""
    if file is not None:
        others = [each for each in others if (each.namespace, each.agent) == (file.namespace, file.agent)] + [file]
    return max(others, key=lambda each: (each.state == "restoring", each.epoch, each.sequence), default=None)


def _marker_of(content: bytes) -> Marker | None:
    try:
        return _of_plain(json.loads(content))
    except (ValueError, RecursionError):
        return None


def _of_plain(raw: Any) -> Marker | None:
    try:
        return Marker(
            str(raw["namespace"]), str(raw["agent"]), str(raw["pod_uid"]), int(raw["epoch"]), int(raw["sequence"]),
            "ready" if raw["state"] == "ready" else "restoring", str(raw.get("attempt", "")),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_file(top: int) -> bytes:
    try:
        with open_directory(MARKER_DIRECTORY, top) as folder:
            handle = os.open(MARKER_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(handle, "rb") as file:
                return file.read(MARKER_MAX_BYTES)
    except OSError:
        return b""


def _write_new(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileExistsError):
        handle = os.open(name, flags, 0o644, dir_fd=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)


# -- the extended attribute --


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


# -- the copy in the stage --


def _read_copy(stage: Path, root: Root, top: int) -> Marker | None:
    """Return the copy if it was written for this very folder, not for an earlier one at the same path."""
    try:
        raw: Any = json.loads(read_small_file(stage_layout.marker_copy(stage, root.name), MARKER_MAX_BYTES))
        return _of_plain(raw["marker"]) if raw["folder"] == _identity(top) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write_copy(stage: Path, root: Root, top: int, marker: Marker) -> None:
    """Replace the copy. An older one never stays beside a newer marker; without one, the others are enough."""
    path = stage_layout.marker_copy(stage, root.name)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with create_small_file(path, 0o600) as file:
            file.write(json.dumps({"folder": _identity(top), "marker": asdict(marker)}).encode())


def _identity(top: int) -> list[int]:
    """Return numbers that identify a folder for as long as it exists, also after its file system is mounted again."""
    return [os.fstatvfs(top).f_fsid, os.fstat(top).st_ino, _generation(top)]


def _generation(top: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(top, _GET_GENERATION, bytes(_GENERATION_BYTES)), "little")
    except OSError:  # the file system has none, such as tmpfs, which does not use an inode number again
        return 0
