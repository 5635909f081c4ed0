"""Restores a checkpoint's files into state roots before an agent starts, and decides which roots to keep instead.

Every byte is verified before it is written, and at every moment a root's marker says whether its files can be trusted.
Who may restore, and which checkpoint, is decided earlier; values of the SDK are restored by ``stage.components``. All
calls block.
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from savepoint.contract.control_protocol import CheckpointRef, Welcome
from savepoint.contract.vocabulary import OnUnknownFiles
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

from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root, clear, entries_to_clear, is_empty
from savepoint_sidecar.restore.aside import entries_that_expire
from savepoint_sidecar.restore.in_place import InPlaceReport, RootRestore, more_space
from savepoint_sidecar.restore.markers import Marker, read_marker, write_marker

log = logging.getLogger(__name__)

ENTRY_BYTES: Final = 4096
"""Rough cost of an entry beyond its content, for the check of free space."""
STAT_BLOCK_BYTES: Final = 512
"""The unit of ``st_blocks``, whatever the block size of the file system."""

Action = Literal["keep", "restore"]


def root_action(
    root: Root, marker: Marker | None, welcome: Welcome, *, empty: bool, in_checkpoint: bool, attempt: str = ""
) -> Action:
    """Decide whether to keep or restore a root. Pure.

    ``in_checkpoint``: the checkpoint contains this root; ``attempt``: the attempt that took the checkpoint.
    TargetNotEmpty if the root is a persistent volume with files of unknown origin, unless the policy moves them
    to .savepoint.
    """
    parent = welcome.parent
    is_own = marker is not None and (marker.namespace, marker.agent) == (welcome.namespace, welcome.agent)
    if parent is None or not in_checkpoint:
        return "restore" if is_own and marker is not None and marker.state == "restoring" else "keep"
    if marker is not None and is_own:
        is_as_new = marker.sequence >= parent.sequence or _was_captured_here(marker, parent, attempt)
        return "keep" if marker.state == "ready" and is_as_new else "restore"
    if empty or not root.persistent or welcome.policy.on_unknown_files == OnUnknownFiles.MOVE_ASIDE:
        return "restore"
    raise TargetNotEmpty(
        f"{root.mount_path} is a persistent volume with files but without a marker of agent {welcome.agent}, and "
        f"checkpoint {parent.name} exists: nothing was overwritten. Empty the volume to restore, or reset the agent "
        "(AgentRestore, mode Reset) to keep the files and start fresh; with spec.restore.onUnknownFiles: MoveAside in "
        "the policy they are moved to .savepoint."
    )


def _was_captured_here(marker: Marker, parent: CheckpointRef, attempt: str) -> bool:
    """Return whether the checkpoint was captured from the root with this marker, so that its files are as new.

    The marker has the checkpoint's sequence only once the process that took it has learnt that it was committed.
    """
    return bool(attempt) and marker.attempt == attempt and not parent.rolled_back


def config_changed(welcome: Welcome, manifest: Manifest) -> bool:
    """Return whether the checkpoint was taken under another configuration than the pod's; False if one is unknown."""
    return "" not in (welcome.config_hash, manifest.config_hash) and welcome.config_hash != manifest.config_hash


def root_actions(
    roots: Sequence[Root], welcome: Welcome, manifest: Manifest | None, stage: Path | None = None
) -> dict[Root, Action]:
    """Inspect each root and decide whether to keep or restore it.

    ``manifest`` is None if there is no checkpoint. ``stage`` holds copies of the roots' markers.
    """
    attempt = manifest.attempt if manifest is not None else ""
    actions: dict[Root, Action] = {}
    for root in roots:
        try:
            empty = is_empty(root)
        except OSError as error:
            raise root_error(root, error) from error
        marker = read_marker(root, stage)
        in_checkpoint = manifest is not None and manifest.component(root.component) is not None
        actions[root] = root_action(root, marker, welcome, empty=empty, in_checkpoint=in_checkpoint, attempt=attempt)
        if actions[root] == "restore" and not empty and marker is None:
            log.warning("%s is not empty: the restore replaces the files that are there now", root.mount_path)
    return actions


@dataclass
class InPlace:
    """The treatment of roots that hold files, which a restore never deletes, and the report of what it has moved."""

    capture: Capture
    """Knows which files are excluded, and stay."""
    label: str
    """Names the folders for what it replaces: the result of ``label_of``."""
    keeps_half_restored: bool = False
    """True if a person may have added files to what an unfinished restore left, which otherwise is deleted."""
    report: InPlaceReport = field(default_factory=InPlaceReport)

    def applies(self, root: Root, marker: Marker | None, *, empty: bool) -> bool:
        """Return whether the root's files stay, or move aside one by one instead of being deleted.

        Those of a volume that ends with its pod do not.
        """
        half_restored = marker is not None and marker.state == "restoring"
        return root.persistent and not empty and (self.keeps_half_restored or not half_restored)


def restore_files(
    reader: CheckpointReader | None,
    roots: Sequence[Root],
    marker: Marker,
    failpoints: Failpoints,
    progress: Callable[[int], None] | None = None,
    *,
    in_place: InPlace | None = None,
    stage: Path | None = None,
) -> int:
    """Restore the checkpoint's trees into these roots; return the bytes written.

    Roots to which ``in_place`` applies are made equal to the checkpoint. The others are cleared first; without a reader
    that is all. Until all of a root is on disk, its marker demands another restore. ``progress`` receives the total of
    bytes written so far, from several threads. NoSpace if the checkpoint does not fit; then nothing has been changed.
    """
    failpoints.reach("restore-begin")
    compared: list[RootRestore] = []
    if reader is not None and in_place is not None:
        compared = [each for root in roots if (each := _compared(reader, root, in_place, stage)) is not None]
    updated = [each.root for each in compared]
    cleared = [root for root in roots if root not in updated]
    if reader is not None:
        require_space(reader, cleared, compared)
    for root in roots:
        begun = replace(marker, sequence=0) if root in updated else replace(marker, state="restoring")
        with _root_errors(root):
            write_marker(root, begun, stage)
    failpoints.reach("restore-marked")
    for root in cleared:
        with _root_errors(root):
            clear(root)
    failpoints.reach("restore-cleared")
    written = 0

    def report(done: int) -> None:
        if progress is not None:
            progress(written + done)

    for each in compared:
        failpoints.reach("restore-half")
        assert in_place is not None
        written += each.apply(in_place.report, report)
    if reader is not None:
        for root in cleared:
            component = reader.manifest.component(root.component)
            if component is None:
                log.info("%s is not part of the checkpoint: it starts empty", root.mount_path)
                continue
            failpoints.reach("restore-half")
            written += restore_tree(reader, component, root.path, progress=report).bytes
    failpoints.reach("restore-written")
    failpoints.reach("restore-before-ready")
    for root in roots:
        write_marker(root, replace(marker, state="ready"), stage)
    return written


def _compared(reader: CheckpointReader, root: Root, in_place: InPlace, stage: Path | None) -> RootRestore | None:
    """Compare a root with the checkpoint if it is to be restored in place."""
    component = reader.manifest.component(root.component)
    with _root_errors(root):
        if component is None or not in_place.applies(root, read_marker(root, stage), empty=is_empty(root)):
            return None
        return RootRestore(reader, in_place.capture, root, component, in_place.label)


@contextmanager
def _root_errors(root: Root) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise root_error(root, error) from error


def require_space(reader: CheckpointReader, cleared: Sequence[Root], compared: Sequence[RootRestore] = ()) -> None:
    """Raise NoSpace if the checkpoint does not fit a file system, counting what clearing these roots frees.

    What is restored in place needs space beside what it replaces. Nothing is changed.
    """
    needed: Counter[int] = Counter()
    free: dict[int, int] = {}
    mount_paths: dict[int, str] = {}
    sizes = [(each.root, each.needed_bytes) for each in compared]
    for root in cleared:
        component = reader.manifest.component(root.component)
        if component is not None:
            report = survey(reader, component)
            sizes.append((root, report.allocated + ENTRY_BYTES * (report.files + report.directories)))
    for root, size in sizes:
        try:
            device = os.stat(root.path).st_dev  # noqa: PTH116 - beside statvfs
            status = os.statvfs(root.path)
        except OSError as error:
            raise root_error(root, error) from error
        needed[device] += size
        free[device] = status.f_bavail * status.f_frsize
        mount_paths.setdefault(device, root.mount_path)
    if all(size <= free[device] for device, size in needed.items()):
        return
    freed = bytes_freed(cleared, [each.root for each in compared])
    for device, size in needed.items():
        if size > free[device] + freed[device]:
            raise NoSpace(
                f"the checkpoint needs {size} bytes below {mount_paths[device]}; {free[device]} are free"
                + (f", and removing the files there now would free {freed[device]}" if cleared else "")
                + f": nothing was changed; {more_space() if compared else 'give the volume more space'}"
            )


def bytes_freed(cleared: Sequence[Root], updated: Sequence[Root] = ()) -> Counter[int]:
    """Return the bytes that a restore frees, by device number of the file system.

    In roots that are ``updated`` only older replaced files are deleted. A file with several hard links counts only if
    all of them are deleted.
    """
    freed: Counter[int] = Counter()
    links_seen: Counter[tuple[int, int]] = Counter()
    for root in (*cleared, *updated):
        try:
            for found in entries_to_clear(root) if root in cleared else entries_that_expire(root):
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
