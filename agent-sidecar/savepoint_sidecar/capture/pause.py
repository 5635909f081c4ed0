"""Proof that nothing moved while an agent was paused, from two walks of a root.

It compares; ``capture`` reads and decides what fails an attempt.
"""

import os
from typing import Final, NamedTuple

from savepoint_sidecar.capture.draft import Draft, SpooledFile, shown
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.walk import FileNode, Walk

COMPARED_BYTES: Final = 1 << 20
_EDGE_BYTES: Final = 64 << 10


class Movement(NamedTuple):
    """The difference between two walks: paths of entries other than folders."""

    vanished: frozenset[str]
    appeared: frozenset[str]
    changed: frozenset[str]

    @property
    def paths(self) -> frozenset[str]:
        """Everything that differs."""
        return self.vanished | self.appeared | self.changed


def movement(before: Walk, after: Walk) -> Movement:
    """Return what differs between two walks of a root."""
    if before.nodes == after.nodes:
        return Movement(frozenset(), frozenset(), frozenset())
    earlier, later = _entries(before), _entries(after)
    common = earlier.keys() & later.keys()
    return Movement(
        frozenset(earlier.keys() - later.keys()),
        frozenset(later.keys() - earlier.keys()),
        frozenset(path for path in common if earlier[path][1:3] != later[path][1:3]),
    )


def doubts(draft: Draft, moved: Movement, when: str) -> list[str]:
    """Return why the checkpoint is not of one moment, if anything moved, and note the paths in the draft."""
    if not any(moved):
        return []
    draft.unstable |= moved.paths
    paths = [draft.shown(path) for path in moved.paths]
    return [
        f"another process changed {len(moved.changed)}, added {len(moved.appeared)} and removed {len(moved.vanished)} "
        f"files {when}; stop it before each safe point, or exclude its files: {shown(paths)}"
    ]


def has_only_grown(descriptor: int, status: os.stat_result, spooled: SpooledFile, spool: Spool) -> bool:
    """Return whether an open file was only appended to since it was copied, as logs are.

    The copied part is compared; in a large file, its beginning and its end.
    """
    size = spooled.where.length
    if status.st_ino != spooled.signature.inode or status.st_size <= size:
        return False
    pieces = [(0, size)] if size <= COMPARED_BYTES else [(0, _EDGE_BYTES), (size - _EDGE_BYTES, _EDGE_BYTES)]
    return all(
        os.pread(descriptor, length, at) == os.pread(spool.descriptor, length, spooled.where.offset + at)
        for at, length in pieces
    )


def _entries(walked: Walk) -> dict[str, FileNode]:
    return {node.path: node for node in walked.nodes if not node.is_directory}
