"""What is known of files by their stats: which content a path had, so that it need not be read again.

Compact, since a state may have very many files: a packed signature and packed references for each. It reads no file and
may be used from several threads.
"""

import struct
import threading

from savepoint.repository.chunk import ChunkRef
from savepoint.repository.content import Content

from savepoint_sidecar.walk import Signature

RACY_NS = 20_000_000
"""Time stamps advance in ticks of up to 10 ms: a file changed so shortly before it was read may change again unseen."""

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
        if record is None:
            return False
        *known, racy = _RECORD.unpack_from(record)
        return not racy and tuple(known) == signature

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
            for identity, pack, offset, stored, length in _REF.iter_unpack(memoryview(record)[_RECORD.size :])
        )
        return Content(sum(ref.length for ref in refs), refs, (), frozenset(ref.pack for ref in refs))


def is_racy(signature: Signature, read_at_ns: int) -> bool:
    """Whether a file read completely at this time could have changed since without its signature telling."""
    return max(signature.ctime_ns, signature.mtime_ns) > read_at_ns - RACY_NS
