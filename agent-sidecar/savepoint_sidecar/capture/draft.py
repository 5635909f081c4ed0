"""One root while it is being captured, and the way to a file of it that is safe from links and from change.

It reads no content; ``capture`` and ``fuzzy`` do.
"""

import errno
import os
from dataclasses import dataclass, field
from typing import Final

from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.capture.spool import Range
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Node, Signature, Walk, denied, open_below

READ: Final = os.O_RDONLY | os.O_NONBLOCK
TRIES: Final = 3
"""How often a file that changes while it is read is read."""


@dataclass
class Draft:
    """One root as it is being captured."""

    root: Root
    walk: Walk
    table: FileTable
    """Files whose content is in the writer, by the stat under which it was read."""
    taken: dict[str, tuple[Range, Signature, bool]] = field(default_factory=dict)
    """Files copied into the pool during the pause: where, under which stat, and whether it is racy."""
    links: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class OpenFile:
    """An open file of a root; denied() in place of EACCES, FileNotFoundError when it is no file any more."""

    def __init__(self, top: int, root: Root, node: Node) -> None:
        try:
            self.descriptor = open_below(top, node.path, READ)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise denied(root, node.path, node.uid, node.mode) from error
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise FileNotFoundError(errno.ENOENT, "no file any more", node.path) from error
            raise

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
