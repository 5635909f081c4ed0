"""The read path: from a manifest to verified content. Everything it returns has been checked against its id.

It writes no file (``restore`` does) and trusts no size, count or path from the store beyond the format's bounds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import TypeVar

from savepoint.errors import IntegrityError
from savepoint.repository.format import entry as entries_format
from savepoint.repository.format import tree as tree_format
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.content import Content
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import ComponentRecord, Layout, Manifest
from savepoint.repository.format.segment import blob_refs, lines_of
from savepoint.repository.format.tree import TreeEntry, TreeFile
from savepoint.repository.read.fetch import Fetcher
from savepoint.storage.store import BlobReader

T = TypeVar("T")

WINDOW_CHUNKS = 16
WINDOW_SEGMENTS = 8


class CheckpointReader:
    """Reads one checkpoint. Not thread-safe; each call uses threads of its own."""

    def __init__(self, reader: BlobReader, key: AgentKey, manifest: Manifest, *, threads: int = 2) -> None:
        self.manifest = manifest
        self.fetcher = Fetcher(reader, key, {pack.name: pack.size for pack in manifest.packs}, threads=threads)

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the reader's threads."""
        self.fetcher.close()

    @property
    def components(self) -> tuple[ComponentRecord, ...]:
        """The checkpoint's components."""
        return self.manifest.components

    def read_entries(self, component: ComponentRecord) -> dict[str, EntryRecord]:
        """Return the named values of a component of layout entries, in order, without their content."""
        found: dict[str, EntryRecord] = {}
        total = 0
        for where, content in self._segments(component, "entries"):
            for value in lines_of(content, where):
                record = entries_format.entry_of(value, where)
                if record.name in found:
                    raise IntegrityError(f"{where} has two values named {record.name!r}", where)
                found[record.name] = record
                total += record.content.size
        self._check_total(component, total)
        return found

    def tree_entries(self, component: ComponentRecord) -> Iterator[TreeEntry]:
        """Yield the entries of a component of layout tree, in order, each checked."""
        where = self._where(component)
        total = 0
        for entry in tree_format.checked_order(self._tree_entries(component), where):
            total += entry.content.size if isinstance(entry, TreeFile) else 0
            yield entry
        self._check_total(component, total)

    def content_chunks(self, content: Content) -> Iterator[ChunkRef]:
        """Yield every chunk of a file's or value's content, in order."""
        if not content.more:
            yield from content.chunks
            return
        yield from self._chunks_in_segments(content.more, content.size, "the segments of a large file")

    def complete_content(self, content: Content) -> Content:
        """Return the content with the ids and packs below its segments, which a writer needs to refer to it again."""
        if not content.more or content.ids:
            return content
        refs = list(self.content_chunks(content))
        packs = content.packs | {ref.pack for ref in refs}
        return Content(content.size, (), content.more, packs, b"".join(ref.id for ref in refs))

    def blob_chunks(self, component: ComponentRecord) -> Iterator[ChunkRef]:
        """Yield every chunk of a component of layout blob, in order."""
        self._require(component, "blob")
        yield from self._chunks_in_segments(component.segments, component.size, self._where(component))

    def read_content(self, content: Content) -> bytes:
        """Return a whole content in memory; for documents, not for files."""
        return b"".join(bytes(piece) for piece in self._pieces(self.content_chunks(content)))

    def read_content_into(self, content: Content, sink: Callable[[bytes], object]) -> None:
        """Pass the content to ``sink`` piece by piece, in order."""
        for piece in self._pieces(self.content_chunks(content)):
            sink(piece)

    def read_blob_into(self, component: ComponentRecord, sink: Callable[[bytes], object]) -> None:
        """Pass the content of a blob component to ``sink`` piece by piece, in order."""
        for piece in self._pieces(self.blob_chunks(component)):
            sink(piece)

    def references(self, component: ComponentRecord) -> Iterator[ChunkRef]:
        """Yield every reference of a component: its segments, what they list, and the segments below large files."""
        yield from component.segments
        if component.layout == "blob":
            yield from self.blob_chunks(component)
            return
        contents: Iterable[Content]
        if component.layout == "tree":
            contents = (each.content for each in self.tree_entries(component) if isinstance(each, TreeFile))
        else:
            contents = (each.content for each in self.read_entries(component).values())
        for content in contents:
            yield from content.more
            yield from self.content_chunks(content)

    def _tree_entries(self, component: ComponentRecord) -> Iterator[TreeEntry]:
        for where, content in self._segments(component, "tree"):
            for value in lines_of(content, where):
                yield tree_format.entry_of(value, where)

    def _segments(self, component: ComponentRecord, layout: Layout) -> Iterator[tuple[str, bytes]]:
        self._require(component, layout)
        where = self._where(component)
        for window in batches(component.segments, WINDOW_SEGMENTS):
            for content in self.fetcher.fetch_ordered(window):
                yield where, content

    def _chunks_in_segments(self, segments: Sequence[ChunkRef], size: int, where: str) -> Iterator[ChunkRef]:
        total, previous, refs = 0, b"", list[ChunkRef]()
        for window in batches(segments, WINDOW_SEGMENTS):
            for content in self.fetcher.fetch_ordered(window):
                if content != previous:  # a sparse file repeats one segment
                    previous, refs = content, list(blob_refs(content, where))
                    for ref in refs:
                        self.fetcher.check(ref)
                for ref in refs:
                    total += ref.length
                    if total > size:
                        break
                    yield ref
        if total != size:
            raise IntegrityError(f"{where}: the chunks do not add up to {size} bytes", where)

    def _pieces(self, refs: Iterator[ChunkRef]) -> Iterator[bytes]:
        for window in batches(refs, WINDOW_CHUNKS):
            yield from self.fetcher.fetch_ordered(window)

    def _require(self, component: ComponentRecord, layout: Layout) -> None:
        if component.layout != layout:
            raise ValueError(f"component {component.name!r} has layout {component.layout}, not {layout}")

    def _check_total(self, component: ComponentRecord, total: int) -> None:
        if total != component.size:
            where = self._where(component)
            raise IntegrityError(f"{where} holds {total} bytes, the manifest says {component.size}", where)

    def _where(self, component: ComponentRecord) -> str:
        return f"component {component.name} of attempt {self.manifest.attempt}"


def batches(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most ``count``."""
    source = iter(items)
    while batch := list(islice(source, count)):
        yield batch
