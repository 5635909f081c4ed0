"""Small files of Savepoint's own in the stage. The agent can write there too, so nothing found there is trusted.

A file may have been replaced by a link, by a pipe that never delivers, or by a file without end.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def read_small_file(path: Path, max_bytes: int) -> str:
    """Return the text of a regular file. OSError or ValueError if it is not one, is too large, or is not text."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path.name} in the stage is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path.name} in the stage has more than {max_bytes} bytes")
    return content.decode()


@contextmanager
def create_small_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Create a new file in place of whatever has this name, which is neither opened nor followed. Raises OSError."""
    with suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        yield file
