"""The content of a tree, as a witness outside of the checkpoint sees it. Its walk shares no code with the capture."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """One entry of a tree."""

    kind: str
    mode: int = 0
    mtime_ns: int = 0
    content: str = ""
    """Digest of a file's bytes, or the target of a link."""


def digest(content: bytes) -> str:
    """Return the digest under which the witness knows this content."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def look(top: Path, *, without: tuple[str, ...] = (".savepoint",)) -> dict[str, Seen]:
    """Return everything below a folder, by relative path, except what is at these paths."""
    found: dict[str, Seen] = {}

    def visit(folder: str, prefix: str) -> None:
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, which need not be UTF-8
            path, full = prefix + name, f"{folder}/{name}"
            if path in without:
                continue
            status = os.lstat(full)
            mode = stat.S_IMODE(status.st_mode) & 0o777
            if stat.S_ISDIR(status.st_mode):
                found[path] = Seen("folder", mode, status.st_mtime_ns)
                visit(full, f"{path}/")
            elif stat.S_ISLNK(status.st_mode):
                found[path] = Seen("link", content=str(Path(full).readlink()))
            elif stat.S_ISREG(status.st_mode):
                found[path] = Seen("file", mode, status.st_mtime_ns, digest(Path(full).read_bytes()))

    visit(str(top), "")
    return found


def differences(expected: dict[str, Seen], found: dict[str, Seen]) -> list[str]:
    """Return the paths that differ."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
