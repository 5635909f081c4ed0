"""Captures the files of an agent's state roots: a pre-copy while the agent runs, a short final pass while it is paused.

``checkpoint`` decides when to capture and what to do with the result. All calls block and run in a thread. Files
are opened relative to their root, and no link is followed anywhere.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from savepoint.contract.vocabulary import ComponentKind
from savepoint.errors import StateUnstable
from savepoint.repository.format.content import Content
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.write.source import FileSource
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.capture.draft import READ_ATTEMPTS, Draft, OpenFile, SpooledFile
from savepoint_sidecar.capture.file_table import FileTable, is_racy
from savepoint_sidecar.capture.fuzzy import FuzzyReader
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root, open_directory
from savepoint_sidecar.files.walk import FileNode, Walk, open_below, signature_of, walk

log = logging.getLogger(__name__)


def no_check() -> None:
    """Let the capture continue: the ``check`` of a capture that nothing interrupts."""


def ignore_planned(size: int) -> None:
    """Discard the number of bytes: the ``on_planned`` of a capture whose progress is not reported."""


class Capture:
    """Captures all roots of one agent. ``tables`` hold, by root name, the files of the last committed checkpoint."""

    def __init__(
        self,
        roots: Sequence[Root],
        exclude: Sequence[str],
        clock_ns: Callable[[], int],
        check: Callable[[], None] = no_check,
    ) -> None:
        """``check`` is called between files and may raise to end the capture."""
        self.roots = tuple(roots)
        self.ignored_patterns: tuple[str, ...] = ()
        """The exclude patterns that are ignored because they cannot be evaluated, each with the reason."""
        self.exclude(exclude)
        self.clock_ns, self.check = clock_ns, check
        self.on_planned: Callable[[int], None] = ignore_planned
        """Called with a number of bytes as soon as it is known that they will be read."""
        self.tables: dict[str, FileTable] = {root.name: FileTable() for root in roots}

    def exclude(self, patterns: Sequence[str]) -> None:
        """Replace the exclude patterns, for all later captures. A pattern that cannot be evaluated excludes nothing."""
        self._excluded = {root.name: Excluded(patterns, root.mount_path) for root in self.roots}
        before = self.ignored_patterns
        self.ignored_patterns = tuple(dict.fromkeys(text for each in self._excluded.values() for text in each.ignored))
        for text in self.ignored_patterns:
            if text not in before:
                log.warning("%s; the files it means are captured", text)

    def excluded(self, root: Root) -> Excluded:
        """Return the exclude patterns of this root."""
        return self._excluded[root.name]

    def file_bytes(self) -> int:
        """Return the total size of all files now, in bytes."""
        return sum(self._walk(root).file_bytes for root in self.roots)

    def precopy(self, writer: CheckpointWriter) -> list[Draft]:
        """Store what changed since the last committed checkpoint while the agent runs; ``final_pass`` does the rest."""
        drafts = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            drafts.append(draft)
            self._store_changed(writer, draft, self.tables[root.name])
        for draft in drafts:  # storing may have retired wasteful packs: read their files again before the pause
            to_store_again = draft.table.paths_to_store_again(writer.can_reuse)
            if to_store_again:
                self._store_changed(writer, draft, draft.table, only=to_store_again)
        return drafts

    def _store_changed(
        self, writer: CheckpointWriter, draft: Draft, known: FileTable, *, only: Collection[str] | None = None
    ) -> None:
        root = draft.root
        changed = self._changed_files(writer, known, draft)
        wanted = [node for node in changed if only is None or node.path in only]
        self.on_planned(sum(node.signature.size for node in wanted))
        with open_directory(root.path) as top:

            def store(node: FileNode) -> tuple[FileNode, Content | None, int]:
                self.check()
                return self._store_once(writer, top, root, node)

            for node, content, read_at in writer.map(store, wanted):
                if content is not None:
                    draft.table.put(node.path, node.signature, content, racy=is_racy(node.signature, read_at))

    def final_pass(self, writer: CheckpointWriter, drafts: list[Draft], spool: Spool) -> list[Draft]:
        """Copy what changed since the pre-copy into the spool, while the agent is paused.

        StateUnstable if a file changes despite the pause, StageFull if the spool has no room.
        """
        before = {draft.root.name: draft.table for draft in drafts}
        finals = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            finals.append(draft)
            changed = self._changed_files(writer, before.get(root.name, self.tables[root.name]), draft)
            size = sum(node.signature.size for node in changed)
            spool.require_space(size)
            self.on_planned(size)
            with open_directory(root.path) as top:
                for node in changed:
                    self.check()
                    draft.spooled[node.path] = self._copy(top, root, node, spool)
                self._read_links(top, draft)
                for path, spooled in draft.spooled.items():
                    if signature_of(_stat(top, path)) != spooled.signature:
                        raise _unstable(root, path)
        return finals

    def read_fuzzy(self, writer: CheckpointWriter, scratch: Path, before: Sequence[Draft] = ()) -> list[Draft]:
        """Store everything that changed while the agent may be writing; databases by SQLite's backup.

        ``before`` is what a pre-copy by the same writer has already stored.
        """
        known = self.tables | {draft.root.name: draft.table for draft in before}
        drafts = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            drafts.append(draft)
            with open_directory(root.path) as top:
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
                self.on_planned(sum(n.signature.size for n in files if not table.matches(n.path, n.signature)))
                left_out = {path for paths in writer.map(reader.read, files) for path in paths}
            draft.walk.nodes = [node for node in draft.walk.nodes if node.path not in left_out]
        return drafts

    def store(self, writer: CheckpointWriter, drafts: list[Draft], spool: Spool | None) -> None:
        """Store what the final pass copied, after the pause, then add every root's tree to the checkpoint."""
        for draft in drafts:
            if spool is not None:

                def store(path: str, draft: Draft = draft, spool: Spool = spool) -> tuple[str, Content]:
                    self.check()
                    where = draft.spooled[path].where
                    return path, writer.store(
                        FileSource(spool.descriptor, where.length, where.offset), ComponentKind.FILES
                    )

                for path, content in writer.map(store, draft.spooled):
                    spooled = draft.spooled[path]
                    draft.table.put(path, spooled.signature, content, racy=spooled.racy)
            writer.add_tree(draft.root.component, ComponentKind.FILES, self._entries(draft))

    def committed(self, drafts: list[Draft]) -> None:
        """Make the drafts the last committed checkpoint, with which later captures are compared."""
        self.tables = {draft.root.name: draft.table for draft in drafts}
        for draft in drafts:
            draft.table.keep_only({node.path for node in draft.walk.nodes})

    def _walk(self, root: Root) -> Walk:
        return walk(root, self._excluded[root.name], self.check)

    @staticmethod
    def _changed_files(writer: CheckpointWriter, known: FileTable, draft: Draft) -> list[FileNode]:
        """Start the draft from the known files; return those that changed or must be stored again."""
        to_store_again = known.paths_to_store_again(writer.can_reuse)
        draft.table = known.copy()
        return [
            node
            for node in draft.walk.nodes
            if node.is_file and (node.path in to_store_again or not known.matches(node.path, node.signature))
        ]

    def _store_once(
        self, writer: CheckpointWriter, top: int, root: Root, node: FileNode
    ) -> tuple[FileNode, Content | None, int]:
        """Store a file; its content is None if it changed meanwhile, which leaves it to the final pass."""
        try:
            with OpenFile(top, root, node) as handle:
                content = writer.store_file(handle.descriptor, node.signature.size)
                after = signature_of(os.fstat(handle.descriptor))
        except FileNotFoundError:
            return node, None, 0
        unchanged = after == node.signature and content.size == node.signature.size
        return node, content if unchanged else None, self.clock_ns()

    def _copy(self, top: int, root: Root, node: FileNode, spool: Spool) -> SpooledFile:
        for _ in range(READ_ATTEMPTS):
            try:
                with OpenFile(top, root, node) as handle:
                    before = signature_of(os.fstat(handle.descriptor))
                    where = spool.append(handle.descriptor, before.size, self.check)
                    if where.length == before.size and signature_of(os.fstat(handle.descriptor)) == before:
                        return SpooledFile(where, before, is_racy(before, self.clock_ns()))
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
                spooled = draft.spooled.get(node.path)
                yield TreeFile(
                    node.path, node.mode & 0o777, spooled.signature.mtime_ns if spooled else mtime_ns, content
                )


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
        f"{root.mount_path.rstrip('/')}/{path} changed while the agent was paused: another process is writing it. "
        "Exclude it with spec.state.exclude in the policy, or stop the writer before each safe point."
    )
