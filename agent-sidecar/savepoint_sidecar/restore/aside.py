"""Moves what a restore replaces out of its way: nothing that an agent or a person wrote is deleted by a restore.

It is kept in the root's own ``.savepoint`` folder, which no checkpoint holds: on the same file system, where a move is
one rename. Each restore has a folder of its own there; of several the newest ``KEPT_FOLDERS`` stay.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final

from savepoint.contract.control_protocol import Replaced
from savepoint.contract.names import MARKER_DIRECTORY

from savepoint_sidecar.files.roots import (
    Root,
    entries_below,
    open_directory,
    open_marker_folder,
    remove,
)

PREFIX: Final = "replaced-"
KEPT_FOLDERS: Final = 3
NAMES_KEPT: Final = 10
"""Names listed of one folder; more are only counted."""
NAME_MAX_CHARACTERS: Final = 200
_OWN_NAME: Final = re.compile(rf"{PREFIX}(\d{{8}}-\d{{6}})(?:-(\d+))?")


def label_of(now: datetime) -> str:
    """Return the label of a restore at this time."""
    return now.strftime("%Y%m%d-%H%M%S")


def expired(names: Iterable[str], keep: int) -> list[str]:
    """Return the folders of earlier restores that are more than the newest ``keep``. Other names are not judged."""
    own = [(match[1], int(match[2] or 1), name) for name in names if (match := _OWN_NAME.fullmatch(name))]
    return [name for *_, name in sorted(own, reverse=True)[keep:]]


def replaced_of(where: str, names: list[str]) -> Replaced:
    """Return the report of a folder with these entries, with printable names."""
    shown = [each.encode(errors="backslashreplace").decode()[:NAME_MAX_CHARACTERS] for each in names[:NAMES_KEPT]]
    return Replaced(where, len(names), tuple(shown))


def describe(replaced: Replaced) -> str:
    """Return a sentence about moved files, such as ``main.py and notes.md are now in /work/.savepoint/replaced-…``."""
    more = replaced.entries - len(replaced.names)
    names = ", ".join(replaced.names) + (f" and {more} more" if more > 0 else "")
    return f"{names}: moved to {replaced.path}"


@contextmanager
def new_folder(root: Root, top: int, label: str) -> Iterator[tuple[str, int]]:
    """Create a folder for replaced files in an open root, and delete those of earlier restores that have expired.

    Yields:
        The path of the folder as the agent sees it, and a descriptor of it.
    """
    with open_marker_folder(top) as folder:
        taken = set(os.listdir(folder))  # noqa: PTH208 - below an open descriptor
        for each in expired(taken, KEPT_FOLDERS - 1):
            with suppress(OSError):  # what cannot be deleted stays
                remove(folder, each)
        name = next(each for each in _candidates(label) if each not in taken)
        os.mkdir(name, 0o700, dir_fd=folder)
        with open_directory(name, folder) as target:
            yield f"{root.mount_path.rstrip('/')}/{MARKER_DIRECTORY}/{name}", target
        os.fsync(folder)


def entries_that_expire(root: Root) -> Iterator[os.stat_result]:
    """Yield the lstat of each entry that the next ``new_folder`` in the root deletes. OSError as ``listdir``."""
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        open_directory(root.path) as top,
        open_directory(MARKER_DIRECTORY, top) as folder,
    ):
        for name in expired(os.listdir(folder), KEPT_FOLDERS - 1):  # noqa: PTH208 - below an open descriptor
            with suppress(PermissionError), open_directory(name, folder) as old:
                yield from entries_below(old)


def _candidates(label: str) -> list[str]:
    return [PREFIX + label, *(f"{PREFIX}{label}-{number}" for number in range(2, 1000))]
