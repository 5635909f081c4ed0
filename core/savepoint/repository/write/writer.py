"""The write path: components in, packs and a sealed manifest out. What the parent has is not stored again.

It commits nothing: ``finish`` makes an Offer, and an authority decides (``lineage``). It decides neither when to
capture nor what; it holds two lanes of reused buffers, so that memory stays bounded whatever the size of the state.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from savepoint.repository.format import entry as entries_format
from savepoint.repository.format import tree as tree_format
from savepoint.repository.format.chunk import ChunkRef, block_bytes
from savepoint.repository.format.content import Content
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import (
    KINDS,
    ComponentRecord,
    Execution,
    Layout,
    Manifest,
    Parent,
    Sizes,
    component_digest,
    manifest_name,
    seal_manifest,
)
from savepoint.repository.format.seal import NONCE_BYTES
from savepoint.repository.format.segment import REFS_PER_SEGMENT, blob_segment, cut
from savepoint.repository.format.tree import TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.history.lineage import Offer
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.repository import manifest_key
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.pack_uploads import PackUploads
from savepoint.repository.write.repack import packs_to_retire
from savepoint.repository.write.source import Entry, FileSource, MemorySource, Source
from savepoint.repository.write.worker_pool import WorkerPool
from savepoint.storage.store import BlobReader, BlobWriter

Item = TypeVar("Item")
Result = TypeVar("Result")


class CheckpointWriter:
    """Writes one checkpoint. ``add_*`` are called from one thread; ``store*`` and ``reuse`` from any."""

    def __init__(
        self,
        reader: BlobReader,
        writer: BlobWriter,
        key: AgentKey,
        epoch: int,
        parent: Manifest | None,
        *,
        index: ChunkIndex | None = None,
        threads: int = 2,
        progress: Callable[[int], None] | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """``index`` is what the writer of the parent left; without it the parent's segments are read.

        ``progress`` is told the plain bytes done so far, from the threads that did them.
        """
        self._writer, self._key, self._epoch = writer, key, epoch
        self._random_bytes = random_bytes
        self._index = index if index is not None else load_index(reader, key, parent)
        self._index.begin(packs_to_retire(self._index.uses()))

        def new_name() -> str:
            return f"{epoch}-{random_bytes(16).hex()}"

        packing = PackUploads(writer, key, self._index, new_name=new_name, buffers=max(2, threads))
        self._lanes = WorkerPool(packing, self._index, threads, progress)
        self._components: list[ComponentRecord] = []

    def known(self, identity: bytes) -> ChunkRef | None:
        """Where the chunk with this id is, if it need not be stored again."""
        return self._index.find(identity)

    def reuse(self, content: Content) -> bool:
        """Whether content of the parent may be referred to again without reading it; if not, store it anew."""
        return self._index.usable(content.packs)

    def store(self, source: Source, kind: str) -> Content:
        """Store all of a source; StateUnstable if it ends early."""
        return self._lanes.store(source, kind, exact=True)

    def store_bytes(self, content: bytes | bytearray | memoryview, kind: str) -> Content:
        """Store bytes in memory."""
        return self._lanes.store(MemorySource(content), kind, exact=True)

    def store_file(self, descriptor: int, size: int, kind: str = "Files") -> Content:
        """Store at most ``size`` bytes of an open file; its Content's size says how many were there."""
        return self._lanes.store(FileSource(descriptor, size), kind, exact=False)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's answers in order. As long as items are large they are worked out by the writer's threads."""
        return self._lanes.map(function, items)

    def add_blob(self, name: str, kind: str, source: Source, *, architecture_bound: bool = False) -> ComponentRecord:
        """Store a source as one blob component."""
        block, length = block_bytes(kind), source.length
        segments = []
        for start in range(0, length, block * REFS_PER_SEGMENT):
            refs = self._lanes.store_blocks(
                source, start, min(length - start, block * REFS_PER_SEGMENT), block, exact=True
            )
            for ref in refs:
                self._index.mark(ref)
            segments.append(self._store_segment(blob_segment(refs)))
        return self._add(name, kind, "blob", size=length, segments=segments, bound=architecture_bound)

    def add_entries(
        self, name: str, kind: str, entries: Iterable[Entry], *, architecture_bound: bool = False
    ) -> ComponentRecord:
        """Store named values, in the order given; names must differ."""
        stored = (EntryRecord(e.name, e.encoding, self.store(e.source, kind), e.meta) for e in entries)
        return self.add_stored_entries(name, kind, stored, architecture_bound=architecture_bound)

    def add_stored_entries(
        self, name: str, kind: str, records: Iterable[EntryRecord], *, architecture_bound: bool = False
    ) -> ComponentRecord:
        """As add_entries, for values whose content is stored already."""
        names: set[str] = set()
        sizes: list[int] = []

        def lines() -> Iterator[tuple[str, bytes]]:
            for record in records:
                if record.name in names:
                    raise ValueError(f"component {name!r} has two values named {record.name!r}")
                names.add(record.name)
                sizes.append(record.content.size)
                self._refer(record.content)
                yield record.name, entries_format.line_of(record)

        segments = [self._store_segment(content) for content in cut(lines())]
        return self._add(name, kind, "entries", size=sum(sizes), segments=segments, bound=architecture_bound)

    def add_tree(
        self, name: str, kind: str, entries: Iterable[TreeEntry], *, architecture_bound: bool = False
    ) -> ComponentRecord:
        """Describe a file tree whose contents are stored already; sorted by path, every parent listed before."""
        size = 0

        def lines() -> Iterator[tuple[str, bytes]]:
            nonlocal size
            for entry in tree_format.checked_order(entries, f"tree {name!r}"):
                if isinstance(entry, TreeFile):
                    self._refer(entry.content)
                    size += entry.content.size
                elif isinstance(entry, TreeSymlink) and not entry.target:
                    raise ValueError(f"the symbolic link {entry.path!r} has no target")
                yield entry.path, tree_format.line_of(entry)

        segments = [self._store_segment(content) for content in cut(lines())]
        return self._add(name, kind, "tree", size=size, segments=segments, bound=architecture_bound)

    @property
    def components(self) -> tuple[ComponentRecord, ...]:
        """What was added so far."""
        return tuple(self._components)

    def finish(
        self,
        *,
        namespace: str,
        agent: str,
        attempt: str,
        created: str,
        consistency: str,
        parent: Parent | None,
        schema_version: str = "",
        config_hash: str = "",
        dependencies: Mapping[str, str] | None = None,
        architecture: str = "",
        execution: Execution | None = None,
        put: bool = True,
    ) -> Offer:
        """Put what is left, seal the manifest, and put it too if ``put``; then commit() or abort()."""
        needed = {pack.name for pack in self._index.needed()}
        written = self._lanes.flush(needed.__contains__)
        manifest = Manifest(
            namespace=namespace,
            agent=agent,
            attempt=attempt,
            epoch=self._epoch,
            created=created,
            consistency=consistency,
            components=self.components,
            packs=tuple(self._index.needed()),
            size=Sizes(
                logical=sum(component.size for component in self._components),
                stored=self._index.live_bytes(),
                uploaded=sum(pack.size for pack in written),
            ),
            parent=parent,
            schema_version=schema_version,
            config_hash=config_hash,
            dependencies=dependencies or {},
            architecture=architecture,
            execution=execution or Execution(),
        )
        content = seal_manifest(manifest, self._key, self._random_bytes(NONCE_BYTES))
        name = manifest_name(content)
        if put:
            self._writer.put_new(manifest_key(name), content)
        self.manifest = manifest
        return Offer(
            attempt, name, len(content), written, manifest.size.uploaded, manifest.size.logical,
            manifest.size.stored, content,
        )  # fmt: skip

    def commit(self) -> ChunkIndex:
        """The offer was committed: the index for the next writer, whose parent is this checkpoint."""
        self._lanes.close()
        self._index.commit()
        return self._index

    def abort(self, *, keep_stored: bool = False) -> ChunkIndex:
        """The attempt is over: threads stop at their next chunk; the index for the next writer, on the old parent.

        ``keep_stored`` lets the next attempt refer to packs that this one has put: for attempts that ran out of time
        or lost the store, so that a large state is stored in several. Never after an offer was refused: a pack that
        is not there would then be missing again. Whoever commits looks at every pack that the parent does not name.
        """
        self._lanes.close()
        self._index.abandon(keep_stored=keep_stored)
        return self._index

    def _store_segment(self, content: bytes) -> ChunkRef:
        ref = self._lanes.store_chunk(content)
        self._index.mark(ref)
        return ref

    def _refer(self, content: Content) -> None:
        for ref in (*content.chunks, *content.more):
            self._index.mark(ref)
        if content.more:
            if not content.ids:
                raise ValueError("content that segments list must be complete: read it with CheckpointReader.content")
            self._index.mark_listed(content.packs, content.chunk_ids())

    def _add(
        self,
        name: str,
        kind: str,
        layout: Layout,
        *,
        size: int,
        segments: Sequence[ChunkRef],
        bound: bool,
    ) -> ComponentRecord:
        if kind not in KINDS:
            raise ValueError(f"component {name!r} has an unknown kind {kind!r}")
        if any(each.name == name for each in self._components):
            raise ValueError(f"component {name!r} was added twice")
        component = ComponentRecord(name, kind, layout, component_digest(segments), size, tuple(segments), bound)
        self._components.append(component)
        return component


def load_index(reader: BlobReader, key: AgentKey, parent: Manifest | None) -> ChunkIndex:
    """The index of a checkpoint, from its segments."""
    index = ChunkIndex()
    if parent is not None:
        index.begin()
        for pack in parent.packs:
            index.wrote(pack)
        with CheckpointReader(reader, key, parent) as checkpoint:
            for component in parent.components:
                for ref in checkpoint.references(component):
                    index.add(ref)
                    index.mark(ref)
        index.commit()
    return index
