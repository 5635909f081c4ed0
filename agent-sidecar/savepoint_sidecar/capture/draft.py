"""The state of one root's capture: what was read, what was left out, and why it may not be of one moment.

It reads nothing; ``capture`` and ``fuzzy`` do.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from savepoint.errors import RunAsUserRequired

from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.capture.spool import Range
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Signature, Walk

READ_ATTEMPTS: Final = 3
"""Number of times that a file is read if it changes while it is being read."""
NAMES_SHOWN: Final = 5


class SpooledFile(NamedTuple):
    """A file that was copied into the spool during the pause."""

    where: Range
    signature: Signature
    """The signature under which it was copied."""
    racy: bool
    """True if it may change without changing its signature; see ``file_table``."""


@dataclass
class Draft:
    """The part of one root that has been captured so far."""

    root: Root
    walk: Walk
    table: FileTable
    """Files whose content the writer has stored, with the signature under which it was read."""
    spooled: dict[str, SpooledFile] = field(default_factory=dict)
    """Files copied into the spool during the pause, by path."""
    links: dict[str, str] = field(default_factory=dict)
    mtimes: dict[str, int] = field(default_factory=dict)
    """Times to store for files whose stored content is not the file's, so that nothing takes one for the other."""
    vanished: list[str] = field(default_factory=list)
    """Files that were removed after the walk, before they could be read."""
    unstable: set[str] = field(default_factory=set)
    """Paths that were seen to change while they were captured."""
    missing: dict[str, str] = field(default_factory=dict)
    """Databases that are left out, by path, each with the reason."""
    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """Reasons why the captured files may not be of one moment. With any, the checkpoint is Fuzzy."""
    unreadable: dict[str, RunAsUserRequired] = field(default_factory=dict)
    """Files that this process cannot read, by path. They are left out."""

    @property
    def is_exact(self) -> bool:
        """True if the draft holds the whole root as it was at one moment."""
        inexact = (
            self.doubts, self.warnings, self.vanished, self.unreadable, self.walk.unreadable, self.walk.unsettled,
            self.walk.impossible,
        )  # fmt: skip
        return not any(inexact)

    def require_readable(self) -> None:
        """Raise RunAsUserRequired if more cannot be read than can: this process runs as the wrong user.

        A few unreadable entries are left out and reported instead.
        """
        unreadable = {**self.walk.unreadable, **self.unreadable}
        if len(unreadable) > self.walk.file_count - len(self.unreadable):
            raise next(iter(unreadable.values()))

    def left_out(self) -> list[str]:
        """Return a warning for everything that is left out although it may matter."""
        found = [f"left out, with everything in it: {error}" for _, error in sorted(self.walk.unreadable.items())] + [
            f"left out: {error}" for _, error in sorted(self.unreadable.items())
        ]
        found += [f"left out, with everything in it: {each}" for each in self.walk.impossible.values()]
        if self.walk.unsettled:
            folders = [self.shown(each) for each in self.walk.unsettled]
            found.append(
                f"{len(folders)} folders changed as often as they were listed, so that their entries may be of "
                f"different moments: {shown(folders)}"
            )
        if self.vanished:
            found.append(
                f"{len(self.vanished)} files were removed while the checkpoint was taken: "
                f"{shown([self.shown(each) for each in self.vanished])}"
            )
        return found

    def unstable_paths(self) -> list[str]:
        """Return the paths, as the agent sees them, whose content may be of another moment than the rest."""
        return [self.shown(path) for path in {*self.unstable, *self.walk.unsettled}]

    def missing_paths(self) -> dict[str, str]:
        """Return everything that is left out without having been excluded: reasons by path, as the agent sees it."""
        found = {**self.walk.skipped, **self.walk.impossible, **self.missing}
        found |= dict.fromkeys(self.vanished, "it was removed while the checkpoint was taken")
        found |= {path: str(error) for path, error in {**self.walk.unreadable, **self.unreadable}.items()}
        return {self.shown(path): reason for path, reason in found.items()}

    def shown(self, path: str) -> str:
        """Return a path as the agent sees it."""
        return f"{self.root.mount_path.rstrip('/')}/{path}".rstrip("/")


def shown(names: Collection[str]) -> str:
    """Return a few of these names, and the number of the others."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return ", ".join(listed[:NAMES_SHOWN]) + more
