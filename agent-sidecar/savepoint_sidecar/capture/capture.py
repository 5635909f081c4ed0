"""The files of an agent, from state roots into a writer: pre-copy while it runs, a short final pass while it waits.

It decides neither when to capture nor what becomes of it (``checkpoint`` does), and knows no session. Blocking: it runs
in a thread. Files are opened below their root, and no link is followed anywhere.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from savepoint.errors import StateUnstable
from savepoint.repository.format.content import Content
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.write.source import FileSource
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.capture.draft import TRIES, Draft, OpenFile
from savepoint_sidecar.capture.file_table import FileTable, is_racy
from savepoint_sidecar.capture.fuzzy import FuzzyReader
from savepoint_sidecar.capture.spool import Range, Spool
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root, directory
from savepoint_sidecar.files.walk import Node, Signature, Walk, open_below, signature_of, walk

KIND: Final = "Files"


def unchecked() -> None:
    """Nothing ends the work early."""


def unplanned(size: int) -> None:
    """Nobody wants to know."""


class Capture:
    """All roots of one agent. ``tables`` say what the last committed cut held."""

    def __init__(
        self,
        roots: Sequence[Root],
        exclude: Sequence[str],
        clock_ns: Callable[[], int],
        check: Callable[[], None] = unchecked,
    ) -> None:
        """``check`` may raise to end whatever is under way; it is called between files."""
        self.roots = tuple(roots)
        self.exclude(exclude)
        self.clock_ns, self.check = clock_ns, check
        self.plan: Callable[[int], None] = unplanned
        """Told the bytes that are going to be read, as soon as that is known."""
        self.tables: dict[str, FileTable] = {root.name: FileTable() for root in roots}

    def exclude(self, patterns: Sequence[str]) -> None:
        """Leave this out from now on."""
        self._excluded = {root.name: Excluded(patterns, root.mount_path) for root in self.roots}

    def excluded(self, root: Root) -> Excluded:
        """What the policy leaves out of this root."""
        return self._excluded[root.name]

    def file_bytes(self) -> int:
        """Of all files as they stand."""
        return sum(self._walk(root).file_bytes for root in self.roots)

    def precopy(self, writer: CheckpointWriter) -> list[Draft]:
        """Store what changed since the last committed cut, while the agent runs; the final pass takes the rest."""
        drafts = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            drafts.append(draft)
            self._store_changed(writer, draft, self.tables[root.name])
        for draft in drafts:  # what was stored may have ended the use of wasteful packs: read their files again now
            outworn = draft.table.outworn(writer.reuse)
            if outworn:
                self._store_changed(writer, draft, draft.table, only=outworn)
        return drafts

    def _store_changed(
        self, writer: CheckpointWriter, draft: Draft, known: FileTable, *, only: Collection[str] | None = None
    ) -> None:
        root = draft.root
        changed = self._carry(writer, known, draft)
        wanted = [node for node in changed if only is None or node.path in only]
        self.plan(sum(node.signature.size for node in wanted))
        with directory(root.path) as top:

            def store(node: Node) -> tuple[Node, Content | None, int]:
                self.check()
                return self._store_once(writer, top, root, node)

            for node, content, read_at in writer.map(store, wanted):
                if content is not None:
                    draft.table.put(node.path, node.signature, content, racy=is_racy(node.signature, read_at))

    def take(self, writer: CheckpointWriter, drafts: list[Draft], pool: Spool) -> list[Draft]:
        """The final pass, while the agent waits: what is not as the pre-copy had it is copied into the pool.

        StateUnstable if a file changes all the same, StageFull if the pool has no room.
        """
        before = {draft.root.name: draft.table for draft in drafts}
        finals = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            finals.append(draft)
            changed = self._carry(writer, before.get(root.name, self.tables[root.name]), draft)
            size = sum(node.signature.size for node in changed)
            pool.require(size)
            self.plan(size)
            with directory(root.path) as top:
                for node in changed:
                    self.check()
                    draft.taken[node.path] = self._copy(top, root, node, pool)
                self._read_links(top, draft)
                for path, (_, signature, _) in draft.taken.items():
                    if signature_of(_stat(top, path)) != signature:
                        raise _unstable(root, path)
        return finals

    def read_fuzzy(self, writer: CheckpointWriter, scratch: Path, before: Sequence[Draft] = ()) -> list[Draft]:
        """Store everything that changed while the agent may be writing; databases through their own backup.

        ``before``: what a pre-copy by the same writer has stored already.
        """
        known = self.tables | {draft.root.name: draft.table for draft in before}
        drafts = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            drafts.append(draft)
            with directory(root.path) as top:
                self._read_links(top, draft)
                reader = FuzzyReader(
                    writer,
                    draft,
                    known[root.name],
                    top=top,
                    scratch=scratch,
                    clock_ns=self.clock_ns,
                    check=self.check,
                )
                files = [node for node in draft.walk.nodes if node.is_file]
                table = known[root.name]
                self.plan(sum(n.signature.size for n in files if not table.matches(n.path, n.signature)))
                gone = {path for paths in writer.map(reader.read, files) for path in paths}
            draft.walk.nodes = [node for node in draft.walk.nodes if node.path not in gone]
        return drafts

    def store(self, writer: CheckpointWriter, drafts: list[Draft], pool: Spool | None) -> None:
        """After the pause: store what the final pass copied, then describe every root's tree."""
        for draft in drafts:
            if pool is not None:

                def store(path: str, draft: Draft = draft, pool: Spool = pool) -> tuple[str, Content]:
                    self.check()
                    where, _, _ = draft.taken[path]
                    return path, writer.store(FileSource(pool.descriptor, where.length, where.offset), KIND)

                for path, content in writer.map(store, draft.taken):
                    _, signature, racy = draft.taken[path]
                    draft.table.put(path, signature, content, racy=racy)
            writer.add_tree(draft.root.component, KIND, self._entries(draft))

    def committed(self, drafts: list[Draft]) -> None:
        """The drafts are the cut now: later attempts compare with them."""
        self.tables = {draft.root.name: draft.table for draft in drafts}
        for draft in drafts:
            draft.table.keep({node.path for node in draft.walk.nodes})

    def _walk(self, root: Root) -> Walk:
        return walk(root, self._excluded[root.name], self.check)

    @staticmethod
    def _carry(writer: CheckpointWriter, known: FileTable, draft: Draft) -> list[Node]:
        """Take over the files that are as they are known; the others."""
        outworn = known.outworn(writer.reuse)
        draft.table = known.copy()
        return [
            node
            for node in draft.walk.nodes
            if node.is_file and (node.path in outworn or not known.matches(node.path, node.signature))
        ]

    def _store_once(
        self, writer: CheckpointWriter, top: int, root: Root, node: Node
    ) -> tuple[Node, Content | None, int]:
        """Content of the file if it stayed as its node says; what changed meanwhile is left to the final pass."""
        try:
            with OpenFile(top, root, node) as handle:
                content = writer.store_file(handle.descriptor, node.signature.size)
                after = signature_of(os.fstat(handle.descriptor))
        except FileNotFoundError:
            return node, None, 0
        same = after == node.signature and content.size == node.signature.size
        return node, content if same else None, self.clock_ns()

    def _copy(self, top: int, root: Root, node: Node, pool: Spool) -> tuple[Range, Signature, bool]:
        for _ in range(TRIES):
            try:
                with OpenFile(top, root, node) as handle:
                    before = signature_of(os.fstat(handle.descriptor))
                    where = pool.take(handle.descriptor, before.size, self.check)
                    if where.length == before.size and signature_of(os.fstat(handle.descriptor)) == before:
                        return where, before, is_racy(before, self.clock_ns())
            except FileNotFoundError as error:
                raise _unstable(root, node.path) from error
        raise _unstable(root, node.path)

    @staticmethod
    def _read_links(top: int, draft: Draft) -> None:
        for node in draft.walk.nodes:
            if node.is_symlink:
                with suppress(FileNotFoundError, OSError):
                    draft.links[node.path] = _read_link(top, node.path)

    @staticmethod
    def _entries(draft: Draft) -> Iterator[TreeEntry]:
        contents = draft.table.contents()
        for node in draft.walk.nodes:
            mtime_ns = node.signature.mtime_ns
            if node.is_directory:
                yield TreeDirectory(node.path, node.mode & 0o777, mtime_ns)
            elif node.is_symlink:
                target = draft.links.get(node.path)
                if target:
                    yield TreeSymlink(node.path, target, mtime_ns)
            else:
                content = contents.find(node.path)
                assert content is not None
                taken = draft.taken.get(node.path)
                yield TreeFile(node.path, node.mode & 0o777, taken[1].mtime_ns if taken else mtime_ns, content)


def _stat(top: int, path: str) -> os.stat_result:
    return os.stat(path, dir_fd=top, follow_symlinks=False)


def _read_link(top: int, path: str) -> str:
    folder, _, name = path.rpartition("/")
    if not folder:
        return os.readlink(name, dir_fd=top)
    handle = open_below(top, folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.readlink(name, dir_fd=handle)
    finally:
        os.close(handle)


def _unstable(root: Root, path: str) -> StateUnstable:
    return StateUnstable(
        f"{root.mount_path.rstrip('/')}/{path} changed while the agent was paused: something else writes it. "
        "Exclude it in the policy, or end what writes it before a safe point."
    )
