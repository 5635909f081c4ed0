"""Remembers the stored content of files by their signature, so that unchanged files are not read again.

A state may have very many files, so each takes only a packed signature and packed references. It reads no file, and
may be used from several threads.
"""

import struct
import threading
from collections.abc import Callable, Collection, Iterator, Set

from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.content import Content
from savepoint.repository.format.tree import MAX_TIME_NS

from savepoint_sidecar.files.walk import Signature

RACY_NS = 20_000_000
"""Timestamps advance in ticks of up to 10 ms, so a file read this soon after a change may change again unnoticed."""
FUTURE_NS = 3_600_000_000_000
"""An mtime further in the future was set by a program; only the ctime then says when the file changed."""

_PACKS_KEPT = 1024
"""Above this many packs, those that no file refers to are dropped."""
_RECORD = struct.Struct("<qqqQ?")
_REF = struct.Struct("<32sIIII")


class FileTable:
    """The known files of one root."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._packs: dict[str, int] = {}
        self._lock = threading.Lock()
        self._large: dict[str, Content] = {}
        """Files of too many chunks for a packed record: their content as the writer described it."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def copy(self) -> "FileTable":
        """Return an independent table with the same files."""
        other = FileTable()
        other._files, other._packs, other._large = self._files.copy(), self._packs.copy(), self._large.copy()
        return other

    def put(self, path: str, signature: Signature, content: Content, *, racy: bool) -> None:
        """Remember a file's content. A racy file never matches again, but its content can be looked up."""
        with self._lock:
            if content.more:
                self._large[path] = content
            else:
                self._large.pop(path, None)
            numbers = [self._packs.setdefault(ref.pack, len(self._packs)) for ref in content.chunks]
            refs = b"".join(
                _REF.pack(ref.id, number, ref.offset, ref.stored, ref.length)
                for ref, number in zip(content.chunks, numbers, strict=True)
            )
            self._files[path] = _record(signature, racy) + refs

    def matches(self, path: str, signature: Signature) -> bool:
        """Return whether the file is certainly unchanged since ``put``."""
        record = self._files.get(path)
        return record is not None and record.startswith(_record(signature, False))

    def paths_to_store_again(self, usable: Callable[[Content], bool]) -> frozenset[str]:
        """Return the files with content in packs that are no longer ``usable``."""
        contents = self.contents()
        unusable = {number for name, number in self._packs.items() if not usable(Content(0, (), (), frozenset({name})))}
        large = {path for path, content in self._large.items() if not usable(content)}
        if not unusable:
            return frozenset(large)
        return frozenset(large | {path for path in self._files if unusable & contents.pack_numbers(path)})

    def keep_only(self, paths: Collection[str]) -> None:
        """Forget all other files, and packs that no remaining file refers to."""
        wanted = paths if isinstance(paths, Set) else set(paths)
        contents = self.contents()
        unwanted = [path for path in self._files if path not in wanted]
        for path in unwanted:
            del self._files[path]
            self._large.pop(path, None)
        if len(self._packs) <= _PACKS_KEPT:
            return
        names, self._packs = list(self._packs), {}
        for path, record in self._files.items():
            refs = b"".join(
                _REF.pack(identity, self._packs.setdefault(names[number], len(self._packs)), offset, stored, length)
                for identity, number, offset, stored, length in contents.packed_refs(path)
            )
            self._files[path] = record[: _RECORD.size] + refs

    def contents(self) -> "Contents":
        """Return a view for many lookups of content by path."""
        return Contents(self._files, list(self._packs), self._large)


class Contents:
    """Lookup of a table's contents as the writer describes them. It knows the packs of the time it was created."""

    def __init__(self, files: dict[str, bytes], packs: list[str], large: dict[str, Content]) -> None:
        self._files, self._packs, self._large = files, packs, large

    def find(self, path: str) -> Content | None:
        """Return the content of this path; None if it is unknown."""
        large = self._large.get(path)
        if large is not None:
            return large
        record = self._files.get(path)
        if record is None:
            return None
        refs = tuple(
            ChunkRef(identity, self._packs[pack], offset, stored, length)
            for identity, pack, offset, stored, length in self.packed_refs(path)
        )
        return Content(sum(ref.length for ref in refs), refs, (), frozenset(ref.pack for ref in refs))

    def packed_refs(self, path: str) -> Iterator[tuple[bytes, int, int, int, int]]:
        """Yield the references of a path: chunk id, pack number, offset, stored length and plain length."""
        return _REF.iter_unpack(memoryview(self._files[path])[_RECORD.size :])

    def pack_numbers(self, path: str) -> set[int]:
        """Return the numbers of the packs that hold a path's chunks."""
        return {number for _, number, _, _, _ in self.packed_refs(path)}


def is_racy(signature: Signature, read_at_ns: int, window_ns: int = RACY_NS) -> bool:
    """Return whether a file read from this time on could change afterwards and keep its signature.

    ``window_ns`` is the time within which two changes may leave the same time stamp.
    """
    mtime_ns = signature.mtime_ns if signature.mtime_ns < read_at_ns + FUTURE_NS else 0
    return max(signature.ctime_ns, mtime_ns) > read_at_ns - window_ns


def _record(signature: Signature, racy: bool) -> bytes:
    size, mtime_ns, ctime_ns, inode = signature
    return _RECORD.pack(size, _in_range(mtime_ns), _in_range(ctime_ns), inode, racy)


def _in_range(time_ns: int) -> int:
    """Return a time that fits the record; file systems know dates that 64 bits of nanoseconds do not."""
    return max(-MAX_TIME_NS, min(time_ns, MAX_TIME_NS))
