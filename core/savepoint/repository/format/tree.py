"""The entries of a file tree: files, directories, symbolic links; and which paths can be restored.

It touches no file system: ``restore`` does.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from savepoint.errors import IntegrityError
from savepoint.repository.format.canonical import Fields, encode
from savepoint.repository.format.chunk import ChunkRef, refs_of
from savepoint.repository.format.content import Content
from savepoint.repository.format.segment import REFS_PER_LINE

MAX_PATH_BYTES = 4096
MAX_ELEMENT_BYTES = 255
MODE_BITS = 0o777
MAX_FILE_BYTES = 4 << 40
"""Largest file that this writer stores: 4,096 segments of 1,024 chunks of 1 MiB, which fit an entry's line."""
MAX_ID = (1 << 32) - 2
"""Largest uid or gid."""

MAX_TIME_NS = (1 << 63) - 1
"""Times are within this many nanoseconds of 1970: the years 1677 to 2262."""
_PLAIN_PATH = re.compile(r"(?!\.{1,2}(?:/|\Z))[^/\0]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[^/\0]{1,255})*")
"""Valid ASCII paths, the common case: one match is faster than checking each element."""


class Owner(NamedTuple):
    """The user and the group that an entry belonged to, as numbers."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A regular file. ``owner`` is None in trees that do not record owners, here and below."""

    path: str
    mode: int
    mtime_ns: int
    content: Content
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class TreeDirectory:
    """A directory. Every parent of an entry has one of these, except the root of the tree."""

    path: str
    mode: int
    mtime_ns: int
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class TreeSymlink:
    """A symbolic link with its target, verbatim."""

    path: str
    target: str
    mtime_ns: int
    owner: Owner | None = None


TreeEntry: TypeAlias = TreeFile | TreeDirectory | TreeSymlink


def path_bytes(path: str) -> bytes:
    """Return the bytes of a path as the file system has them; they also define the order of a tree."""
    return path.encode("utf-8", "surrogateescape")


def path_problem(path: str) -> str:
    """Return why the path cannot be that of an entry, or an empty string."""
    if path.isascii() and len(path) <= MAX_PATH_BYTES and _PLAIN_PATH.fullmatch(path):
        return ""
    try:
        raw = path_bytes(path)
    except UnicodeEncodeError:
        return "is not Unicode text"
    elements = raw.split(b"/")
    problems = {
        "holds a NUL": b"\0" in raw,
        "is longer than 4,096 bytes": len(raw) > MAX_PATH_BYTES,
        "has an element that is empty, '.' or '..'": any(each in {b"", b".", b".."} for each in elements),
        "has an element longer than 255 bytes": any(len(each) > MAX_ELEMENT_BYTES for each in elements),
        "is written in two ways": raw.decode("utf-8", "surrogateescape") != path,
    }
    return next((problem for problem, present in problems.items() if present), "")


def line_of(entry: TreeEntry) -> bytes:
    """Return the entry's line; raise ValueError for a path that cannot be restored."""
    problem = path_problem(entry.path)
    if problem:
        raise ValueError(f"the path {entry.path!r} {problem}")
    value: dict[str, Any] = {"path": entry.path, "mtimeNs": entry.mtime_ns}
    if entry.owner is not None:
        value |= {"uid": entry.owner.uid, "gid": entry.owner.gid}
    if isinstance(entry, TreeSymlink):
        value |= {"type": "symlink", "target": entry.target}
    elif isinstance(entry, TreeDirectory):
        value |= {"type": "dir", "mode": entry.mode & MODE_BITS}
    else:
        value |= {"type": "file", "mode": entry.mode & MODE_BITS} | content_fields(entry.content)
    return encode(value) + b"\n"


def entry_of(value: object, where: str) -> TreeEntry:
    """Parse and check the entry of a line."""
    fields = Fields(value, where)
    kind, path = fields.text("type", max_length=16), fields.text("path")
    problem = path_problem(path)
    if problem:
        fields.refuse(f"has an entry whose path {path!r} {problem}")
    mtime_ns = fields.integer("mtimeNs", minimum=-MAX_TIME_NS, maximum=MAX_TIME_NS)
    owner = _owner_of(fields)
    entry: TreeEntry
    if kind == "file":
        entry = TreeFile(path, fields.integer("mode", maximum=MODE_BITS), mtime_ns, content_of(fields, where), owner)
    elif kind == "dir":
        entry = TreeDirectory(path, fields.integer("mode", maximum=MODE_BITS), mtime_ns, owner)
    elif kind == "symlink":
        entry = TreeSymlink(path, _target_of(fields), mtime_ns, owner)
    else:
        fields.refuse(f"has an entry of unknown type {kind!r}")
    fields.end()
    return entry


def checked_order(entries: Iterable[TreeEntry], where: str) -> Iterator[TreeEntry]:
    """Yield the entries; raise IntegrityError unless paths rise and every parent is a directory that came before."""
    directories = {""}
    last = b""
    for entry in entries:
        current = path_bytes(entry.path)
        if current <= last:
            raise IntegrityError(f"{where}: the entry {entry.path!r} is out of order, or occurs twice", where)
        if entry.path.rpartition("/")[0] not in directories:
            raise IntegrityError(f"{where}: the entry {entry.path!r} has no directory entry for its parent", where)
        if isinstance(entry, TreeDirectory):
            directories.add(entry.path)
        last = current
        yield entry


def content_fields(content: Content) -> dict[str, Any]:
    """Return the fields for size, chunks and segments, as lines of trees and of entries have them."""
    value: dict[str, Any] = {"size": content.size, "chunks": [ref.to_wire() for ref in content.chunks]}
    if content.more:
        value["more"] = [ref.to_wire() for ref in content.more]
    return value


def content_of(fields: Fields, where: str) -> Content:
    """Take the content from a line's fields; the ids below its segments are not known yet."""
    size, chunks = fields.integer("size"), refs_of(fields.array("chunks"), where)
    more: tuple[ChunkRef, ...] = refs_of(fields.array("more"), where) if fields.has("more") else ()
    if len(chunks) > REFS_PER_LINE or (more and chunks):
        fields.refuse("has an entry with too many chunks in its line")
    if not more and sum(ref.length for ref in chunks) != size:
        fields.refuse("has an entry whose chunks do not add up to its size")
    return Content(size, chunks, more, frozenset(ref.pack for ref in chunks + more))


def _owner_of(fields: Fields) -> Owner | None:
    """Take the owner; None if the line has none, as lines of older writers."""
    if not fields.has("uid") and not fields.has("gid"):
        return None
    return Owner(fields.integer("uid", maximum=MAX_ID), fields.integer("gid", maximum=MAX_ID))


def _target_of(fields: Fields) -> str:
    target = fields.text("target")
    try:
        raw = path_bytes(target)
    except UnicodeEncodeError:
        fields.refuse("has a symbolic link whose target is not Unicode text")
    if not raw or len(raw) >= MAX_PATH_BYTES or b"\0" in raw:
        fields.refuse("has a symbolic link with an impossible target")
    return target
