"""Restores a checkpoint's files into state roots before an agent starts, and decides which roots to keep instead.

Every byte is verified before it is written, and at every moment a root's marker says whether its files can be trusted.
Who may restore, and which checkpoint, is decided earlier; values of the SDK are restored by ``stage.components``. All
calls block.
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
from savepoint.errors import (
    DISK_FULL_ERRNOS,
    NoSpace,
    RunAsUserRequired,
    SavepointError,
    TargetNotEmpty,
    TargetUnusable,
)
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree, survey

from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Marker, Root, clear, entries_to_clear, is_empty, read_marker, write_marker

log = logging.getLogger(__name__)

ENTRY_BYTES: Final = 4096
"""Rough cost of an entry beyond its content, for the check of free space."""
STAT_BLOCK_BYTES: Final = 512
"""The unit of ``st_blocks``, whatever the block size of the file system."""

Action = Literal["keep", "restore"]


def root_action(root: Root, marker: Marker | None, welcome: Welcome, *, empty: bool, in_checkpoint: bool) -> Action:
    """Decide whether to keep or restore a root. Pure. ``in_checkpoint``: the checkpoint contains this root.

    TargetNotEmpty if the root is a persistent volume with files of unknown origin.
    """
    parent = welcome.parent
    is_own = marker is not None and (marker.namespace, marker.agent) == (welcome.namespace, welcome.agent)
    if parent is None or not in_checkpoint:
        return "restore" if is_own and marker is not None and marker.state == "restoring" else "keep"
    if marker is not None and is_own:
        if marker.state == "ready" and marker.sequence >= parent.sequence:
            return "keep"
        return "restore"
    if empty or not root.persistent:
        return "restore"
    raise TargetNotEmpty(
        f"{root.mount_path} is a persistent volume with files but without a marker of agent {welcome.agent}, and "
        f"checkpoint {parent.name} exists: nothing was overwritten. Empty the volume to restore, or reset the agent "
        "(AgentRestore, mode Reset) to keep the files and start fresh."
    )


def config_changed(welcome: Welcome, manifest: Manifest) -> bool:
    """Return whether the checkpoint was taken under another configuration than the pod's; False if one is unknown."""
    return "" not in (welcome.config_hash, manifest.config_hash) and welcome.config_hash != manifest.config_hash


def root_actions(roots: Sequence[Root], welcome: Welcome, manifest: Manifest | None) -> dict[Root, Action]:
    """Inspect each root and decide whether to keep or restore it. ``manifest`` is None if there is no checkpoint."""
    actions: dict[Root, Action] = {}
    for root in roots:
        try:
            empty = is_empty(root)
        except OSError as error:
            raise root_error(root, error) from error
        marker = read_marker(root)
        in_checkpoint = manifest is not None and manifest.component(root.component) is not None
        actions[root] = root_action(root, marker, welcome, empty=empty, in_checkpoint=in_checkpoint)
        if actions[root] == "restore" and not empty and marker is None:
            log.warning("%s is not empty: the restore replaces the files that are there now", root.mount_path)
    return actions


def restore_files(
    reader: CheckpointReader | None,
    roots: Sequence[Root],
    marker: Marker,
    failpoints: Failpoints,
    progress: Callable[[int], None] | None = None,
    *,
    make_empty: Callable[[Root], None] | None = None,
) -> int:
    """Clear these roots and restore the checkpoint's trees into them; return the bytes written.

    Without a reader the roots are only cleared. A root is marked as restoring before it is changed, and as ready once
    all of it is on disk. ``progress`` receives the total of bytes written so far, from several threads. ``make_empty``
    empties a root without deleting its files, which then still need their space. NoSpace if the checkpoint does not
    fit; then nothing has been changed.
    """
    failpoints.reach("restore-begin")
    if reader is not None:
        require_space(reader, roots, clearing=make_empty is None)
    written = 0
    for root in roots:
        try:
            write_marker(root, replace(marker, state="restoring"))
        except OSError as error:
            raise root_error(root, error) from error
    failpoints.reach("restore-marked")
    for root in roots:
        try:
            (make_empty or clear)(root)
        except OSError as error:
            raise root_error(root, error) from error
    failpoints.reach("restore-cleared")
    if reader is not None:
        for root in roots:
            component = reader.manifest.component(root.component)
            if component is None:
                log.info("%s is not part of the checkpoint: it starts empty", root.mount_path)
                continue
            failpoints.reach("restore-half")
            report = None if progress is None else lambda done, before=written: progress(before + done)
            written += restore_tree(reader, component, root.path, progress=report).bytes
    failpoints.reach("restore-written")
    failpoints.reach("restore-before-ready")
    for root in roots:
        write_marker(root, replace(marker, state="ready"))
    return written


def require_space(reader: CheckpointReader, roots: Sequence[Root], *, clearing: bool = True) -> None:
    """Raise NoSpace if the checkpoint does not fit a file system, counting what ``clearing`` the roots frees.

    Nothing is changed.
    """
    needed: Counter[int] = Counter()
    free: dict[int, int] = {}
    mount_paths: dict[int, str] = {}
    for root in roots:
        component = reader.manifest.component(root.component)
        if component is None:
            continue
        report = survey(reader, component)
        try:
            device = os.stat(root.path).st_dev  # noqa: PTH116 - beside statvfs
            status = os.statvfs(root.path)
        except OSError as error:
            raise root_error(root, error) from error
        needed[device] += report.allocated + ENTRY_BYTES * (report.files + report.directories)
        free[device] = status.f_bavail * status.f_frsize
        mount_paths.setdefault(device, root.mount_path)
    if all(size <= free[device] for device, size in needed.items()):
        return
    freed = bytes_freed_by_clearing(roots) if clearing else Counter[int]()
    for device, size in needed.items():
        if size > free[device] + freed[device]:
            raise NoSpace(
                f"the checkpoint needs {size} bytes below {mount_paths[device]}; {free[device]} are free"
                + (f", and removing the files there now would free {freed[device]}" if clearing else "")
                + ": nothing was changed; give the volume more space"
            )


def bytes_freed_by_clearing(roots: Sequence[Root]) -> Counter[int]:
    """Return the bytes that clearing these roots frees, by device number of the file system.

    A file with several hard links counts only if all of them are in the roots.
    """
    freed: Counter[int] = Counter()
    links_seen: Counter[tuple[int, int]] = Counter()
    for root in roots:
        try:
            for found in entries_to_clear(root):
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    file = (found.st_dev, found.st_ino)
                    links_seen[file] += 1
                    if links_seen[file] < found.st_nlink:
                        continue
                freed[found.st_dev] += found.st_blocks * STAT_BLOCK_BYTES
        except OSError as error:
            raise root_error(root, error) from error
    return freed


def ready_marker(welcome: Welcome, pod_uid: str, parent: CheckpointRef | None) -> Marker:
    """Return the marker of a root that holds the files of ``parent``; with None, of one that starts fresh."""
    sequence = parent.sequence if parent is not None else 0
    return Marker(welcome.namespace, welcome.agent, pod_uid, welcome.epoch, sequence, "ready")


def root_error(root: Root, error: OSError) -> SavepointError:
    """Return the SavepointError for a root that this process cannot read or write."""
    if isinstance(error, PermissionError):
        uid = os.stat(root.path).st_uid  # noqa: PTH116 - one call
        subject = f"{root.mount_path} belongs to uid {uid} and"
        if uid == os.geteuid():
            subject = f"{Path(error.filename or 'something').name!r} in {root.mount_path}"
        return RunAsUserRequired(
            f"{subject} cannot be written as uid {os.geteuid()}: set runAsUser on the agent's container, or fsGroup on "
            "the pod"
        )
    if error.errno in DISK_FULL_ERRNOS:
        return NoSpace(f"no space left in {root.mount_path} ({error.strerror}): give the volume more space")
    return TargetUnusable(
        f"cannot use {root.mount_path} ({error.strerror or error}): it must be a writable volume with a POSIX file "
        "system"
    )
