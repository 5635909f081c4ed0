"""Decides for each state root whether a file's stat proves that its content is unchanged, by probing its file system.

Linux moves the time stamps of a mapped file at the first write to a page after the page was written back, and on some
file systems never; stamps may be coarse; network file systems show old ones. So a stat is trusted only on known block
file systems where a probe saw a mapped write, and only for files that were written back before they were read
(``ChangeDetector.write_back``). Elsewhere contents are read again at every checkpoint.
"""

import ctypes
import mmap
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final, cast

from savepoint.contract.capture_report import RootReport, printable
from savepoint.contract.names import MARKER_DIRECTORY
from savepoint.contract.vocabulary import ChangeDetection

from savepoint_sidecar.capture.file_table import RACY_NS, is_racy
from savepoint_sidecar.files.listing import Signature
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import signature_of

BLOCK_FILE_SYSTEMS: Final = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x794C7630: "overlay",
}
OTHER_FILE_SYSTEMS: Final = {
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x2FC12FC1: "zfs",
    0x4D44: "vfat",
    0x2011BAB0: "exfat",
}
"""For the log: in these the stat is not trusted."""
COARSE_NS: Final = 100_000_000
"""Stamps that advance in larger steps say too little to be trusted."""
_SECOND_NS: Final = 1_000_000_000
_UNKNOWN_GRANULARITY_NS: Final = 2 * _SECOND_NS  # that of FAT, the coarsest
_STEP_SECONDS: Final = 0.001
_STEPS: Final = 60
_PAGE_BYTES: Final = 4096
_WRITE_AND_WAIT: Final = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER


@dataclass(frozen=True)
class ChangeDetector:
    """The way in which changes of files are noticed in one root."""

    file_system: str
    by_stat: bool
    """True if an equal stat proves equal content; else contents are compared."""
    granularity_ns: int = 0
    """Step in which time stamps advance, as seen by the probe."""
    reason: str = ""
    """The reason why contents are compared, or would be if the policy did not trust the stat."""
    by_policy: bool = False
    """True if the stat counts only because the policy says so."""

    def trusting_stat(self) -> "ChangeDetector":
        """Return the detector of a policy that trusts the stat in every file system."""
        return self if self.by_stat else replace(self, by_stat=True, by_policy=True)

    def report(self, root: Root) -> RootReport:
        """Return what status shows of this detector."""
        return RootReport(
            printable(root.mount_path),
            ChangeDetection.STAT if self.by_stat else ChangeDetection.CONTENTS,
            self.file_system,
            self.granularity_ns or None,
            printable(self._reason()),
        )

    def _reason(self) -> str:
        return f"the policy trusts the stat ({self.reason})" if self.by_policy else self.reason

    @property
    def shows_holes(self) -> bool:
        """True if the file system is known to say reliably where a file has no data, which then is not read."""
        return (self.by_stat and not self.by_policy) or self.file_system == "tmpfs"

    @property
    def racy_ns(self) -> int:
        """Time after a change within which another change may leave the same stat."""
        granularity = self.granularity_ns or (_UNKNOWN_GRANULARITY_NS if self.by_policy else 0)
        return max(RACY_NS, 2 * granularity)

    def write_back(self, descriptor: int) -> None:
        """Write an open file's changed pages to its device: the next write to a mapped page then moves its stamps."""
        if self.by_stat:
            _write_back(descriptor, self.file_system)

    def begin_reading(self, descriptor: int) -> Signature:
        """Prepare to read an open file; return its signature, which any write that begins from now on moves.

        A write that has begun has moved the stamps already, and may put its last bytes in place much later. Asking
        for data takes the lock that a write holds, so that such a write is over before the first byte is read.
        """
        self.write_back(descriptor)
        before = signature_of(os.fstat(descriptor))
        with suppress(OSError):
            os.lseek(descriptor, 0, os.SEEK_DATA)
        return before

    def is_racy(self, signature: Signature, read_at_ns: int) -> bool:
        """Return whether a file read from this time on could change afterwards and keep its signature."""
        return is_racy(signature, read_at_ns, self.racy_ns)

    def __str__(self) -> str:
        if not self.by_stat:
            return f"contents, which are read at every checkpoint ({self.file_system}: {self.reason})"
        if self.by_policy:
            return f"stat ({self.file_system}: {self._reason()})"
        return f"stat ({self.file_system}, time stamps in steps of {self.granularity_ns / 1e6:.3g} ms)"


def probe(root: Root) -> ChangeDetector:
    """Return how changes can be noticed in this root. The probe leaves nothing behind."""
    kind = _file_system_type(root.path)
    name = BLOCK_FILE_SYSTEMS.get(kind)
    if name is None:
        known = OTHER_FILE_SYSTEMS.get(kind)
        reason = "time stamps prove nothing there" if known else "unknown file system"
        return ChangeDetector(known or f"type {kind:#x}", by_stat=False, reason=reason)
    try:
        descriptor = _unnamed_file(root.path)
    except OSError as error:
        reason = f"it cannot be probed: {error.strerror or error}"
        return ChangeDetector(name, by_stat=False, reason=reason)
    try:
        granularity = _granularity(descriptor)
        if granularity > COARSE_NS:
            return ChangeDetector(name, by_stat=False, granularity_ns=granularity, reason="coarse time stamps")
        if not _shows_mapped_writes(descriptor, name, granularity):
            return ChangeDetector(name, by_stat=False, granularity_ns=granularity, reason="it hides mapped writes")
        return ChangeDetector(name, by_stat=True, granularity_ns=granularity)
    except (OSError, ValueError) as error:
        return ChangeDetector(name, by_stat=False, reason=f"it cannot be probed: {error}")
    finally:
        os.close(descriptor)


def _unnamed_file(folder: Path) -> int:
    """Open a new file in this file system. It has no name, or loses it at once."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        marker_folder = folder / MARKER_DIRECTORY
        marker_folder.mkdir(exist_ok=True)
        path = marker_folder / f".probe-{os.getpid()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        path.unlink()
        return descriptor


def _granularity(descriptor: int) -> int:
    """Return the smallest step between time stamps that writes leave, in nanoseconds."""
    stamps: list[int] = []
    for _ in range(_STEPS):
        os.pwrite(descriptor, b"x", 0)
        stamp = os.fstat(descriptor).st_mtime_ns
        if stamp not in stamps:
            stamps.append(stamp)
        if len(stamps) > 2:
            break
        time.sleep(_STEP_SECONDS)
    if all(stamp % _SECOND_NS == 0 for stamp in stamps) or len(stamps) == 1:
        return 2 * _SECOND_NS
    return min(later - earlier for earlier, later in pairwise(stamps))


def _shows_mapped_writes(descriptor: int, file_system: str, granularity_ns: int) -> bool:
    """Return whether a write to a mapped page moves the time stamps again after the page was written back."""
    os.ftruncate(descriptor, _PAGE_BYTES)
    with mmap.mmap(descriptor, _PAGE_BYTES) as mapped:
        mapped[0] = 1
        _write_back(descriptor, file_system)
        before = os.fstat(descriptor)
        time.sleep(2 * max(granularity_ns, RACY_NS // 2) / _SECOND_NS)
        mapped[0] = 2
        after = os.fstat(descriptor)
    return after.st_mtime_ns != before.st_mtime_ns and after.st_ctime_ns != before.st_ctime_ns


def _write_back(descriptor: int, file_system: str) -> None:
    function = _sync_file_range()
    # overlay passes an fsync on to the file below it, but not sync_file_range, which is several times faster
    if file_system == "overlay" or function is None or function(descriptor, 0, 0, _WRITE_AND_WAIT) != 0:
        with suppress(OSError):
            os.fsync(descriptor)


def _file_system_type(path: Path) -> int:
    """Return the type that statfs reports; 0 if it cannot be asked."""
    buffer = ctypes.create_string_buffer(256)
    with suppress(AttributeError, OSError):
        if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) == 0:
            word = ctypes.sizeof(ctypes.c_long)
            return int.from_bytes(buffer.raw[:word], sys.byteorder) & 0xFFFFFFFF
    return 0


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return cast(Callable[[int, int, int, int], int], function)
