"""What is known of files by their stats: which content a path had, so that it need not be read again.

Compact, since a state may have very many files: a packed signature and packed references for each. It reads no file and
may be used from several threads.
"""

import struct
import threading
from collections.abc import Callable, Collection, Iterator, Set

from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.content import Content

from savepoint_sidecar.files.walk import Signature

RACY_NS = 20_000_000
"""Time stamps advance in ticks of up to 10 ms: a file changed so shortly before it was read may change again unseen."""

_PACKS_KEPT = 1024
"""Above so many packs, those that no file is in any more are looked for."""
_RECORD = struct.Struct("<qqqQ?")
_REF = struct.Struct("<32sIIII")


class FileTable:
    """Files of one root."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._packs: dict[str, int] = {}
        self._lock = threading.Lock()
        self._large: dict[str, Content] = {}
        """Files of more chunks than a line holds: their content as the writer described it."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def copy(self) -> "FileTable":
        """A table to change, with the same files."""
        other = FileTable()
        other._files, other._packs, other._large = self._files.copy(), self._packs.copy(), self._large.copy()
        return other

    def put(self, path: str, signature: Signature, content: Content, *, racy: bool) -> None:
        """Remember a file. A racy one is remembered so that it can be compared, but is never trusted."""
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
            self._files[path] = _RECORD.pack(*signature, racy) + refs

    def matches(self, path: str, signature: Signature) -> bool:
        """Whether the file is certainly as it was when it was put."""
        record = self._files.get(path)
        return record is not None and record.startswith(_RECORD.pack(*signature, False))

    def outworn(self, usable: Callable[[Content], bool]) -> frozenset[str]:
        """Files with content in packs that are not to be referred to any more: they are to be stored anew."""
        contents = self.contents()
        bad = {number for name, number in self._packs.items() if not usable(Content(0, (), (), frozenset({name})))}
        large = {path for path, content in self._large.items() if not usable(content)}
        if not bad:
            return frozenset(large)
        return frozenset(large | {path for path in self._files if bad & contents.numbers(path)})

    def keep(self, paths: Collection[str]) -> None:
        """Forget all other files, and the packs that only they were in."""
        wanted = paths if isinstance(paths, Set) else set(paths)
        contents = self.contents()
        gone = [path for path in self._files if path not in wanted]
        for path in gone:
            del self._files[path]
            self._large.pop(path, None)
        if len(self._packs) <= _PACKS_KEPT:
            return
        names, self._packs = list(self._packs), {}
        for path, record in self._files.items():
            refs = b"".join(
                _REF.pack(identity, self._packs.setdefault(names[number], len(self._packs)), offset, stored, length)
                for identity, number, offset, stored, length in contents.refs(path)
            )
            self._files[path] = record[: _RECORD.size] + refs

    def contents(self) -> "Contents":
        """A view for many look-ups: contents by path."""
        return Contents(self._files, list(self._packs), self._large)


class Contents:
    """What a table knows, as the writer describes it; a snapshot of the packs at the time it was made."""

    def __init__(self, files: dict[str, bytes], packs: list[str], large: dict[str, Content]) -> None:
        self._files, self._packs, self._large = files, packs, large

    def find(self, path: str) -> Content | None:
        """The content put for this path."""
        large = self._large.get(path)
        if large is not None:
            return large
        record = self._files.get(path)
        if record is None:
            return None
        refs = tuple(
            ChunkRef(identity, self._packs[pack], offset, stored, length)
            for identity, pack, offset, stored, length in self.refs(path)
        )
        return Content(sum(ref.length for ref in refs), refs, (), frozenset(ref.pack for ref in refs))

    def refs(self, path: str) -> Iterator[tuple[bytes, int, int, int, int]]:
        """The packed references of a path: id, number of the pack, offset, stored and plain length."""
        return _REF.iter_unpack(memoryview(self._files[path])[_RECORD.size :])

    def numbers(self, path: str) -> set[int]:
        """Numbers of the packs in which a path's chunks are."""
        return {number for _, number, _, _, _ in self.refs(path)}


def is_racy(signature: Signature, read_at_ns: int) -> bool:
    """Whether a file read completely at this time could have changed since without its signature telling."""
    return max(signature.ctime_ns, signature.mtime_ns) > read_at_ns - RACY_NS
