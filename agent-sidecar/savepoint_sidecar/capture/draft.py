"""The state of one root's capture, and a safe way to open its files: no links, no blocking on pipes.

It reads no content; ``capture`` and ``fuzzy`` do.
"""

import errno
import os
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.capture.spool import Range
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import FileNode, Signature, Walk, open_below, unreadable

READ: Final = os.O_RDONLY | os.O_NONBLOCK
READ_ATTEMPTS: Final = 3
"""Number of times that a file is read if it changes while it is being read."""


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
    warnings: list[str] = field(default_factory=list)


class OpenFile:
    """A file of a root, opened for reading.

    Raises RunAsUserRequired if it may not be read, FileNotFoundError if its path no longer names a regular file.
    """

    def __init__(self, top: int, root: Root, node: FileNode) -> None:
        try:
            self.descriptor = open_below(top, node.path, READ)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise unreadable(root, node.path, node.uid, node.mode) from error
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise FileNotFoundError(errno.ENOENT, "no longer a regular file", node.path) from error
            raise

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
