"""Small files that Savepoint keeps in the stage, where the agent can write too: read and written without trust.

What stands there may have become a link, a pipe that never answers, or a file without end.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def read_own(path: Path, most: int) -> str:
    """The text of a regular file. OSError or ValueError if it is none, is too large, or is no text."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path.name} in the stage is no file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path.name} in the stage has more than {most} bytes")
    return content.decode()


@contextmanager
def create_own(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file in place of whatever was there; nothing that stands there is opened or followed. OSError."""
    with suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        yield file
