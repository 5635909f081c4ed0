"""Brings a checkpoint's files into their roots before an agent starts: what to do with each root, and doing it.

Every byte is verified before it is written, and a marker says at each moment whether a root can be believed. Who may
restore, and which checkpoint, was decided before; SDK values are ``components``' business. Blocking.
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from savepoint.contract.control_protocol import CheckpointRef, Welcome
from savepoint.errors import NoSpace, RunAsUserRequired, SavepointError, TargetNotEmpty, TargetUnusable
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree, survey
from savepoint.repository.read.target import FULL

from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Marker, Root, clear, is_empty, read_marker, would_clear, write_marker

log = logging.getLogger(__name__)

ENTRY_BYTES: Final = 4096
"""What an entry costs beyond its content, roughly: for the check of free space."""
STAT_BLOCK_BYTES: Final = 512
"""The unit of ``st_blocks``, whatever the file system's own is."""

Action = Literal["keep", "restore"]


def decide(root: Root, marker: Marker | None, welcome: Welcome, *, empty: bool, held: bool) -> Action:
    """What becomes of a root. Pure. ``held``: the checkpoint has files of it.

    TargetNotEmpty if it is a persistent volume with files that nothing explains.
    """
    parent = welcome.parent
    ours = marker is not None and (marker.namespace, marker.agent) == (welcome.namespace, welcome.agent)
    if parent is None or not held:
        return "restore" if ours and marker is not None and marker.state == "restoring" else "keep"
    if marker is not None and ours:
        if marker.state == "ready" and marker.sequence >= parent.sequence:
            return "keep"
        return "restore"
    if empty or not root.persistent:
        return "restore"
    raise TargetNotEmpty(
        f"{root.mount_path} is a persistent volume with files that no marker of agent {welcome.agent} explains, and "
        f"checkpoint {parent.name} exists: nothing was overwritten. Empty the volume to restore, or reset the agent "
        "(AgentRestore, mode Reset) to keep the files and start fresh."
    )


def config_changed(welcome: Welcome, manifest: Manifest) -> bool:
    """Whether the checkpoint was made under another configuration than the pod's; not where one of them is unknown."""
    return "" not in (welcome.config_hash, manifest.config_hash) and welcome.config_hash != manifest.config_hash


def plan(roots: Sequence[Root], welcome: Welcome, manifest: Manifest | None) -> dict[Root, Action]:
    """What becomes of each root, from what stands there."""
    actions: dict[Root, Action] = {}
    for root in roots:
        try:
            empty = is_empty(root)
        except OSError as error:
            raise unusable(root, error) from error
        marker = read_marker(root)
        held = manifest is not None and manifest.component(root.component) is not None
        actions[root] = decide(root, marker, welcome, empty=empty, held=held)
        if actions[root] == "restore" and not empty and marker is None:
            log.warning("%s is not empty: what was put there before the restore gives way to it", root.mount_path)
    return actions


def restore_files(
    reader: CheckpointReader | None,
    roots: Sequence[Root],
    marker: Marker,
    failpoints: Failpoints,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Clear these roots and restore the checkpoint's trees into them; the bytes written. ``reader`` None: only clear.

    NoSpace, and everything is as it was, if the volumes have too little room. A root is marked as restoring before it
    is touched, and as ready when all of it is on disk. ``progress`` is told the bytes written so far, of all roots
    together, from several threads.
    """
    failpoints.reach("restore-begin")
    if reader is not None:
        require_space(reader, roots)
    written = 0
    for root in roots:
        try:
            write_marker(root, replace(marker, state="restoring"))
        except OSError as error:
            raise unusable(root, error) from error
    failpoints.reach("restore-marked")
    for root in roots:
        try:
            clear(root)
        except OSError as error:
            raise unusable(root, error) from error
    failpoints.reach("restore-cleared")
    if reader is not None:
        for root in roots:
            component = reader.manifest.component(root.component)
            if component is None:
                log.info("the checkpoint holds nothing of %s: it starts empty", root.mount_path)
                continue
            failpoints.reach("restore-half")
            tell = None if progress is None else lambda done, before=written: progress(before + done)
            written += restore_tree(reader, component, root.path, progress=tell).bytes
    failpoints.reach("restore-written")
    failpoints.reach("restore-before-ready")
    for root in roots:
        write_marker(root, replace(marker, state="ready"))
    return written


def require_space(reader: CheckpointReader, roots: Sequence[Root]) -> None:
    """NoSpace if a file system has less room than the checkpoint needs there, with what clearing the roots will free.

    It changes nothing.
    """
    needed: Counter[int] = Counter()
    free: dict[int, int] = {}
    shown: dict[int, str] = {}
    for root in roots:
        component = reader.manifest.component(root.component)
        if component is None:
            continue
        report = survey(reader, component)
        try:
            device = os.stat(root.path).st_dev  # noqa: PTH116 - beside statvfs
            status = os.statvfs(root.path)
        except OSError as error:
            raise unusable(root, error) from error
        needed[device] += report.bytes + ENTRY_BYTES * (report.files + report.directories)
        free[device] = status.f_bavail * status.f_frsize
        shown.setdefault(device, root.mount_path)
    if all(size <= free[device] for device, size in needed.items()):
        return
    freed = freed_by_clearing(roots)
    for device, size in needed.items():
        if size > free[device] + freed[device]:
            raise NoSpace(
                f"the checkpoint needs {size} bytes below {shown[device]}; {free[device]} are free, and what gives way "
                f"to it holds {freed[device]}: nothing was changed; give the volume more space"
            )


def freed_by_clearing(roots: Sequence[Root]) -> Counter[int]:
    """Bytes that clearing these roots gives back, by the number of the file system.

    A file with several names counts if all of them are in the roots.
    """
    freed: Counter[int] = Counter()
    names_met: Counter[tuple[int, int]] = Counter()
    for root in roots:
        try:
            for found in would_clear(root):
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    file = (found.st_dev, found.st_ino)
                    names_met[file] += 1
                    if names_met[file] < found.st_nlink:
                        continue
                freed[found.st_dev] += found.st_blocks * STAT_BLOCK_BYTES
        except OSError as error:
            raise unusable(root, error) from error
    return freed


def marker_of(welcome: Welcome, pod_uid: str, parent: CheckpointRef | None) -> Marker:
    """The marker of this incarnation at this cut."""
    sequence = parent.sequence if parent is not None else 0
    return Marker(welcome.namespace, welcome.agent, pod_uid, welcome.epoch, sequence, "ready")


def unusable(root: Root, error: OSError) -> SavepointError:
    """A root that this process cannot write or read."""
    if isinstance(error, PermissionError):
        uid = os.stat(root.path).st_uid  # noqa: PTH116 - one call
        what = f"{root.mount_path} belongs to uid {uid} and"
        if uid == os.geteuid():
            what = f"{Path(error.filename or 'something').name!r} in {root.mount_path}"
        return RunAsUserRequired(
            f"{what} cannot be written as uid {os.geteuid()}: set runAsUser on the agent's container, or fsGroup on "
            "the pod"
        )
    if error.errno in FULL:
        return NoSpace(f"{root.mount_path} has no room left ({error.strerror}): give the volume more space")
    return TargetUnusable(
        f"{root.mount_path} cannot be used ({error.strerror or error}): it must be a writable volume with a POSIX file "
        "system"
    )
