"""Gives restored entries to the user and group that they belonged to, as far as this process may.

A process with the right to change owners, such as root on a laptop, gives every entry back. Any other process becomes
the owner of what it restores, and keeps the group where it belongs to it. Whether that is acceptable is decided before
the restore, by the caller.
"""

import errno
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from savepoint.repository.format.tree import Owner

log = logging.getLogger(__name__)

CAP_CHOWN: Final = 1 << 0
_STATUS: Final = Path("/proc/self/status")
_CANNOT_OWN: Final = frozenset({errno.EPERM, errno.EINVAL, errno.ENOTSUP})
"""Errors of a file system or a user namespace that does not know the owner, whatever the process may do."""


@functools.cache
def may_change_owners() -> bool:
    """Return whether this process may give files to other users. Pods' containers may not: they have no capability."""
    try:
        fields = dict(line.partition(":")[::2] for line in _STATUS.read_text().splitlines())
        return bool(int(fields["CapEff"], 16) & CAP_CHOWN)
    except (OSError, KeyError, ValueError):
        return os.geteuid() == 0


def give_file(descriptor: int, owner: Owner | None) -> None:
    """Give an open file or folder to its owner."""
    if owner is not None:
        _give(owner, lambda uid, gid: os.fchown(descriptor, uid, gid))


def give_link(folder: int, name: bytes, owner: Owner | None) -> None:
    """Give a symbolic link in an open folder to its owner."""
    if owner is not None:
        _give(owner, lambda uid, gid: os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False))


def _give(owner: Owner, change: Callable[[int, int], None]) -> None:
    uid, gid = _allowed(owner)
    if (uid, gid) == (-1, -1):
        return
    try:
        change(uid, gid)
    except OSError as error:
        if error.errno not in _CANNOT_OWN:
            raise
        _report(owner, error.strerror)


@functools.cache
def _report(owner: Owner, cause: str) -> None:
    log.warning(
        "files cannot be given to uid %d and group %d on this file system: %s; they belong to uid %d",
        owner.uid, owner.gid, cause, os.geteuid(),
    )  # fmt: skip


def _allowed(owner: Owner) -> tuple[int, int]:
    """Return the uid and gid to set; -1 leaves one as it is."""
    if may_change_owners():
        return owner
    return -1, owner.gid if owner.gid in _groups() else -1


@functools.cache
def _groups() -> frozenset[int]:
    return frozenset((os.getegid(), *os.getgroups()))
