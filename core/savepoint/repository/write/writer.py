"""The write path: from components to packs and a sealed manifest. What the parent has is not stored again.

It commits nothing: ``finish`` returns an UploadedCheckpoint, which an authority commits (``lineage``). It decides
neither when to capture nor what. Its workers reuse their buffers, so that memory stays bounded for a state of any size.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from savepoint.contract.capture_report import CaptureReport
from savepoint.contract.shrinkage import DEFAULT_PERCENT, shrinkages
from savepoint.contract.vocabulary import ComponentKind
from savepoint.errors import IntegrityError, ObjectMissing, StateUnstable
from savepoint.repository.format import entry as entries_format
from savepoint.repository.format import tree as tree_format
from savepoint.repository.format.chunk import ChunkRef, block_bytes
from savepoint.repository.format.content import Content
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import (
    COMPONENT_KINDS,
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
from savepoint.repository.format.object_keys import manifest_key, pack_key
from savepoint.repository.format.seal import NONCE_BYTES
from savepoint.repository.format.segment import REFS_PER_SEGMENT, blob_segment, split_segments
from savepoint.repository.format.tree import TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.history.lineage import UploadedCheckpoint
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.pack_uploads import PackUploads
from savepoint.repository.write.repack import packs_to_repack
from savepoint.repository.write.source import Entry, FileSource, MemorySource, Source
from savepoint.repository.write.worker_pool import WorkerPool
from savepoint.storage.store import BlobReader, BlobWriter

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """The working parameters of a writer."""

    threads: int = 2
    progress: Callable[[int], None] | None = None
    """Called with the number of plain bytes stored so far, from several threads."""
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    shrink_percent: int = DEFAULT_PERCENT
    """Below this percentage of its parent's state a checkpoint is marked as shrunk."""
    lost_packs: frozenset[str] = frozenset()
    """Names of the parent's packs that the store does not hold: what is in them is stored again."""


class CheckpointWriter:
    """Writes one checkpoint. ``add_*`` are called from one thread; ``store*`` and ``can_reuse`` from any."""

    def __init__(
        self,
        reader: BlobReader,
        writer: BlobWriter,
        key: AgentKey,
        epoch: int,
        parent: Manifest | None,
        *,
        index: ChunkIndex | None = None,
        options: WriterOptions = WriterOptions(),
    ) -> None:
        """Start a checkpoint.

        Args:
            reader: Reads the agent's part of the store.
            writer: Writes the agent's part of the store.
            key: The agent's key.
            epoch: The epoch that the checkpoint belongs to.
            parent: The manifest of the checkpoint that this one is based on.
            index: The index that the parent's writer returned; without it the parent's segments are read.
            options: The working parameters.
        """
        self._writer, self._key, self._epoch = writer, key, epoch
        self._parent, self._shrink_percent = parent, options.shrink_percent
        self._random_bytes = options.random_bytes
        self._lost_packs = options.lost_packs
        self._index = index if index is not None else load_index(reader, key, parent)
        self._index.lose(self._lost_packs)
        self._index.begin(packs_to_repack(self._index.pack_uses()))

        def new_name() -> str:
            return f"{epoch}-{options.random_bytes(16).hex()}"

        uploads = PackUploads(writer, key, self._index, new_name=new_name, buffers=max(2, options.threads))
        self._workers = WorkerPool(uploads, self._index, options.threads, options.progress)
        self._components: list[ComponentRecord] = []

    def find_chunk(self, identity: bytes) -> ChunkRef | None:
        """Return where the chunk with this id is, if it need not be stored again."""
        return self._index.find(identity)

    def can_reuse(self, content: Content) -> bool:
        """Return whether content of the parent may be referred to again without reading it; if not, store it again."""
        return self._index.all_usable(content.packs)

    def store(self, source: Source, kind: str) -> Content:
        """Store a whole source; raise StateUnstable if it ends early."""
        return self._workers.store(source, kind, exact=True)

    def store_bytes(self, content: bytes | bytearray | memoryview, kind: str) -> Content:
        """Store bytes in memory."""
        return self._workers.store(MemorySource(content), kind, exact=True)

    def store_file(
        self, descriptor: int, size: int, kind: str = ComponentKind.FILES, *, has_holes: bool = False
    ) -> Content:
        """Store at most ``size`` bytes of an open file; the size of the returned content is what the file had.

        ``has_holes``: do not read where the file has no data, on file systems that are known to say this reliably.
        """
        return self._workers.store(FileSource(descriptor, size, has_holes=has_holes), kind, exact=False)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function's results in order. As long as items are large, the writer's threads compute them."""
        return self._workers.map(function, items)

    def add_blob(self, name: str, kind: str, source: Source, *, architecture_bound: bool = False) -> ComponentRecord:
        """Store a source as one blob component."""
        block, length = block_bytes(kind), source.length
        segments = []
        for start in range(0, length, block * REFS_PER_SEGMENT):
            refs = self._workers.store_blocks(
                source, start, min(length - start, block * REFS_PER_SEGMENT), block, exact=True
            )
            for ref in refs:
                self._index.mark(ref)
            segments.append(self._store_segment(blob_segment(refs)))
        return self._add(name, kind, "blob", size=length, segments=segments, bound=architecture_bound)

    def add_entries(
        self, name: str, kind: str, entries: Iterable[Entry], *, architecture_bound: bool = False
    ) -> ComponentRecord:
        """Store named values, in the given order; names must be unique."""
        stored = (EntryRecord(e.name, e.encoding, self.store(e.source, kind), e.meta) for e in entries)
        return self.add_stored_entries(name, kind, stored, architecture_bound=architecture_bound)

    def add_stored_entries(
        self, name: str, kind: str, records: Iterable[EntryRecord], *, architecture_bound: bool = False
    ) -> ComponentRecord:
        """Add named values whose content is already stored, in the given order; names must be unique."""
        names: set[str] = set()
        sizes: list[int] = []

        def lines() -> Iterator[tuple[str, bytes]]:
            for record in records:
                if record.name in names:
                    raise ValueError(f"component {name!r} has two values named {record.name!r}")
                names.add(record.name)
                sizes.append(record.content.size)
                self._mark_content(record.content)
                yield record.name, entries_format.line_of(record)

        segments = [self._store_segment(content) for content in split_segments(lines())]
        return self._add(name, kind, "entries", size=sum(sizes), segments=segments, bound=architecture_bound)

    def add_tree(
        self, name: str, kind: str, entries: Iterable[TreeEntry], *, architecture_bound: bool = False
    ) -> ComponentRecord:
        """Add a file tree whose contents are already stored. Entries are sorted by path, parents first."""
        size = files = 0

        def lines() -> Iterator[tuple[str, bytes]]:
            nonlocal size, files
            for entry in tree_format.checked_order(entries, f"tree {name!r}"):
                if isinstance(entry, TreeFile):
                    self._mark_content(entry.content)
                    size += entry.content.size
                    files += 1
                elif isinstance(entry, TreeSymlink) and not entry.target:
                    raise ValueError(f"the symbolic link {entry.path!r} has no target")
                yield entry.path, tree_format.line_of(entry)

        segments = [self._store_segment(content) for content in split_segments(lines())]
        return self._add(name, kind, "tree", size=size, segments=segments, bound=architecture_bound, files=files)

    @property
    def components(self) -> tuple[ComponentRecord, ...]:
        """The components added so far."""
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
        agent_uid: int | None = None,
        capture: CaptureReport | None = None,
        put: bool = True,
    ) -> UploadedCheckpoint:
        """Upload what is left, seal the manifest, and store it too if ``put``; return it, to be committed.

        Call ``commit`` or ``abort`` afterwards. Raises StateTooLarge if the manifest exceeds 1 MiB, and StateUnstable
        if something still refers to a lost pack.
        """
        needed = {pack.name for pack in self._index.needed()}
        self._require_not_lost(needed)
        uploaded = self._workers.flush(needed.__contains__)
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
                uploaded=sum(pack.size for pack in uploaded),
            ),
            parent=parent,
            schema_version=schema_version,
            config_hash=config_hash,
            dependencies=dependencies or {},
            architecture=architecture,
            execution=execution or Execution(),
            agent_uid=agent_uid,
            capture=capture,
        )
        manifest = self._with_shrinkages(manifest)
        content = seal_manifest(manifest, self._key, self._random_bytes(NONCE_BYTES))
        name = manifest_name(content)
        if put:
            self._writer.put_new(manifest_key(name), content)
        self.manifest = manifest
        return UploadedCheckpoint(
            attempt, name, len(content), uploaded, manifest.size.uploaded, manifest.size.logical,
            manifest.size.stored, content,
        )  # fmt: skip

    def commit(self) -> ChunkIndex:
        """End the writer after its checkpoint was committed; return the index for a writer based on this checkpoint."""
        self._workers.close()
        self._index.commit()
        return self._index

    def abort(self, *, keep_stored: bool = False) -> ChunkIndex:
        """End the attempt: threads stop at their next chunk. Return the index for another writer on the same parent.

        ``keep_stored`` lets the next attempt refer to packs that this one has uploaded, so that a large state can be
        stored in several attempts: for attempts that ran out of time or lost the store. Never use it after an offer was
        refused: a missing pack would then be missing again. The authority checks every pack that the parent does not
        name.
        """
        self._workers.close()
        self._index.abandon(keep_stored=keep_stored)
        return self._index

    def _require_not_lost(self, needed: Collection[str]) -> None:
        lost = sorted(self._lost_packs.intersection(needed))
        if lost:
            raise StateUnstable(
                f"some state is only in {pack_key(lost[0])}, which the store lost, and could not be read from the "
                "agent to store it again; the next attempt reads it again"
            )

    def _with_shrinkages(self, manifest: Manifest) -> Manifest:
        """Compare the amount of state with the parent's, and keep the losses that are still open."""
        if self._parent is None or manifest.parent is None:
            return manifest
        before, now = self._parent.amounts(), manifest.amounts()
        found = shrinkages(self._parent.shrinkages, manifest.parent.sequence, before, now, self._shrink_percent)
        return replace(manifest, shrinkages=found)

    def _store_segment(self, content: bytes) -> ChunkRef:
        ref = self._workers.store_chunk(content)
        self._index.mark(ref)
        return ref

    def _mark_content(self, content: Content) -> None:
        for ref in (*content.chunks, *content.more):
            self._index.mark(ref)
        if content.more:
            if not content.ids:
                raise ValueError("content listed by segments must be complete: use CheckpointReader.complete_content")
            distinct = (identity for identity, _ in groupby(content.chunk_ids()))  # a sparse file repeats one
            self._index.mark_listed(content.packs, distinct)

    def _add(
        self,
        name: str,
        kind: str,
        layout: Layout,
        *,
        size: int,
        segments: Sequence[ChunkRef],
        bound: bool,
        files: int | None = None,
    ) -> ComponentRecord:
        if kind not in COMPONENT_KINDS:
            raise ValueError(f"component {name!r} has an unknown kind {kind!r}")
        if any(each.name == name for each in self._components):
            raise ValueError(f"component {name!r} was added twice")
        component = ComponentRecord(name, kind, layout, component_digest(segments), size, tuple(segments), bound, files)
        self._components.append(component)
        return component


def load_index(reader: BlobReader, key: AgentKey, parent: Manifest | None) -> ChunkIndex:
    """Build the index of a checkpoint by reading its segments.

    What damaged or missing segments list stays unknown, so that a writer stores it again.
    """
    index = ChunkIndex()
    if parent is not None:
        index.begin()
        for pack in parent.packs:
            index.add_pack(pack)
        with CheckpointReader(reader, key, parent) as checkpoint:
            for component in parent.components:
                try:
                    for ref in checkpoint.references(component):
                        index.add(ref)
                        index.mark(ref)
                except (IntegrityError, ObjectMissing) as error:
                    log.warning(
                        "component %r of the last checkpoint is damaged, and is stored again: %s", component.name, error
                    )
        index.commit()
    return index
