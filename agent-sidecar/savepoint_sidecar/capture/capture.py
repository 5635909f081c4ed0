"""Captures the files of an agent's state roots: a pre-copy while the agent runs, a short final pass while it is paused.

``checkpoint`` decides when to capture and what to do with the result. All calls block and run in a thread. Files
are opened relative to their root, and no link is followed anywhere.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from savepoint.contract.capture_report import CaptureReport, capture_report
from savepoint.contract.control_protocol import PolicyTerms
from savepoint.contract.vocabulary import ChangeDetection, ComponentKind
from savepoint.errors import RunAsUserRequired, StateUnstable
from savepoint.repository.format.content import Content
from savepoint.repository.write.source import FileSource
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.capture.change_detector import ChangeDetector, probe
from savepoint_sidecar.capture.database import HEADER_BYTES, is_database
from savepoint_sidecar.capture.database_reader import require_settled
from savepoint_sidecar.capture.draft import READ_ATTEMPTS, Draft, SpooledFile, shown
from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.capture.fuzzy import FuzzyReader
from savepoint_sidecar.capture.open_files import READ_ERRNOS, RootFiles, equals_content
from savepoint_sidecar.capture.pause import doubts, has_only_grown, movement
from savepoint_sidecar.capture.root_read import RootRead
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.capture.tree_entries import time_warning, tree_entries
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import FileNode, Walk, signature_of, unreadable, walk

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
        self.trusts_stat = False
        """True if the policy wants an equal stat to count as equal content in every root."""
        self.clock_ns, self.check = clock_ns, check
        self.on_planned: Callable[[int], None] = ignore_planned
        """Called with a number of bytes as soon as it is known that they will be read."""
        self._detectors: dict[str, ChangeDetector] = {}
        self._databases: dict[str, set[str]] = {root.name: set() for root in roots}
        """Paths of SQLite databases that were read in this process, by root name."""
        self.tables: dict[str, FileTable] = {root.name: FileTable() for root in roots}

    def exclude(self, patterns: Sequence[str]) -> None:
        """Replace the exclude patterns, for all later captures. A pattern that cannot be evaluated excludes nothing."""
        self._excluded = {root.name: Excluded(patterns, root.mount_path) for root in self.roots}
        before = self.ignored_patterns
        self.ignored_patterns = tuple(dict.fromkeys(text for each in self._excluded.values() for text in each.ignored))
        for text in self.ignored_patterns:
            if text not in before:
                log.warning("%s; the files it means are captured", text)

    def apply(self, policy: PolicyTerms) -> None:
        """Follow the policy in force, in all later captures."""
        self.exclude(policy.exclude)
        self.trusts_stat = policy.change_detection == ChangeDetection.STAT

    def excluded(self, root: Root) -> Excluded:
        """Return the exclude patterns of this root."""
        return self._excluded[root.name]

    def probe_roots(self) -> None:
        """Find out, and log, how changes are noticed in each root."""
        for root in self.roots:
            self.detector(root)

    def detector(self, root: Root) -> ChangeDetector:
        """Return how changes of files are noticed in this root; its file system is probed once."""
        found = self._probed(root)
        return found.trusting_stat() if self.trusts_stat else found

    def report(self, drafts: Sequence[Draft]) -> CaptureReport | None:
        """Return in which way these drafts differ from the state at one moment; None if there are no roots."""
        if not self.roots:
            return None
        missing = {path: reason for draft in drafts for path, reason in draft.missing_paths().items()}
        unstable = [path for draft in drafts for path in draft.unstable_paths()]
        return capture_report([self.detector(root).report(root) for root in self.roots], unstable, missing)

    def _probed(self, root: Root) -> ChangeDetector:
        found = self._detectors.get(root.name)
        if found is None:
            found = self._detectors[root.name] = probe(root)
            shown = found.trusting_stat() if self.trusts_stat else found
            level = logging.INFO if found.by_stat else logging.WARNING  # it takes time, or a risk
            log.log(level, "changes of files in %s are noticed by their %s", root.mount_path, shown)
        return found

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
        changed = self._changed_files(writer, known, draft)
        wanted = [node for node in changed if only is None or node.path in only]
        self.on_planned(sum(node.signature.size for node in wanted))
        with RootFiles(draft.walk) as files:

            def store(node: FileNode) -> None:
                self.check()
                self._store_once(writer, files, draft, node)

            for _ in writer.map(store, wanted):
                pass
        draft.require_readable()

    def final_pass(self, writer: CheckpointWriter, drafts: list[Draft], spool: Spool) -> list[Draft]:
        """Copy what changed since the pre-copy into the spool, while the agent is paused.

        StateUnstable if a file changes despite the pause other than by growing, StageFull if the spool has no room.
        """
        before = {draft.root.name: draft.table for draft in drafts}
        finals = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            finals.append(draft)
            with RootFiles(draft.walk) as files:
                known = before.get(root.name, self.tables[root.name])
                changed = self._really_changed(files, known, self._changed_files(writer, known, draft))
                spool.require_space(sum(map(files.allocated_bytes, changed)))
                self.on_planned(sum(node.signature.size for node in changed))
                for node in changed:
                    self.check()
                    try:
                        draft.spooled[node.path] = self._copy(files, node, spool)
                    except RunAsUserRequired as error:
                        draft.unreadable[node.path] = error
                self._read_links(files, draft)
                draft.require_readable()
                databases = self._databases[root.name]
                require_settled(files, draft, (node.path for node in draft.walk.nodes if node.path in databases))
        for draft in finals:
            self._prove_unmoved(draft, spool)
        return finals

    def read_fuzzy(self, writer: CheckpointWriter, scratch: Path, before: Sequence[Draft] = ()) -> list[Draft]:
        """Store everything that changed while the agent may be writing; SQLite databases as units.

        ``before`` is what a pre-copy by the same writer has already stored.
        """
        for draft in before:  # a pre-copy reads databases as plain files, which proves nothing about transactions
            draft.table.keep_only({node.path for node in draft.walk.nodes} - self._databases[draft.root.name])
        precopied = self.tables | {draft.root.name: draft.table for draft in before}
        drafts = []
        for root in self.roots:
            draft = Draft(root, self._walk(root), FileTable())
            drafts.append(draft)
            detector = self.detector(root)
            known = precopied[root.name] if detector.by_stat else FileTable()
            with RootFiles(draft.walk) as files:
                self._read_links(files, draft)
                reader = FuzzyReader(
                    RootRead(
                        writer=writer,
                        draft=draft,
                        known=known,
                        previous=self.tables[root.name],
                        files=files,
                        detector=detector,
                        scratch=scratch,
                        clock_ns=self.clock_ns,
                        check=self.check,
                    )
                )
                nodes = [node for node in draft.walk.nodes if node.is_file]
                self.on_planned(sum(n.signature.size for n in nodes if not known.matches(n.path, n.signature)))
                left_out = {path for paths in writer.map(reader.read, nodes) for path in paths}
            draft.walk.nodes = [node for node in draft.walk.nodes if node.path not in left_out]
            draft.require_readable()
        return drafts

    def prove_unmoved(self, drafts: Sequence[Draft]) -> None:
        """Record in the drafts what moved since they were read, although the agent has ended."""
        for draft in drafts:
            after = self._walk(draft.root)
            draft.walk.unsettled = after.unsettled or draft.walk.unsettled
            draft.doubts += doubts(draft, movement(draft.walk, after), "after the agent had ended")

    def note_moved(self, drafts: Sequence[Draft]) -> None:
        """Note the paths that moved while the drafts were read from a running agent."""
        for draft in drafts:
            after = self._walk(draft.root)
            draft.walk.unsettled = after.unsettled or draft.walk.unsettled
            draft.unstable |= movement(draft.walk, after).paths

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
            writer.add_tree(draft.root.component, ComponentKind.FILES, tree_entries(draft))

    def warnings(self, draft: Draft) -> list[str]:
        """Return what is not, or not exactly, in the checkpoint as it is in the root."""
        clamped = time_warning(draft)
        skipped = draft.walk.skipped.values()
        return [*skipped, *draft.left_out(), *draft.doubts, *draft.warnings, *([clamped] if clamped else [])]

    def committed(self, drafts: list[Draft]) -> None:
        """Make the drafts the last committed checkpoint, with which later captures are compared."""
        self.tables = {draft.root.name: draft.table for draft in drafts}
        for draft in drafts:
            draft.table.keep_only({node.path for node in draft.walk.nodes})

    def _walk(self, root: Root) -> Walk:
        return walk(root, self._excluded[root.name], self.check, self.clock_ns)

    def _changed_files(self, writer: CheckpointWriter, known: FileTable, draft: Draft) -> list[FileNode]:
        """Start the draft from the known files; return those that may have changed or must be stored again."""
        to_store_again = known.paths_to_store_again(writer.can_reuse)
        by_stat = self.detector(draft.root).by_stat
        draft.table = known.copy()
        return [
            node
            for node in draft.walk.nodes
            if node.is_file
            and (not by_stat or node.path in to_store_again or not known.matches(node.path, node.signature))
        ]

    def _really_changed(self, files: RootFiles, known: FileTable, nodes: list[FileNode]) -> list[FileNode]:
        """Leave out the files whose content is as known, where a stat does not prove it."""
        if self.detector(files.root).by_stat:
            return nodes
        contents = known.contents()

        def is_unchanged(node: FileNode) -> bool:
            self.check()
            content = contents.find(node.path)
            return (
                content is not None
                and known.matches(node.path, node.signature)
                and equals_content(files, node, content, has_holes=self.detector(files.root).shows_holes)
            )

        return [node for node in nodes if not is_unchanged(node)]

    def _store_once(self, writer: CheckpointWriter, files: RootFiles, draft: Draft, node: FileNode) -> None:
        """Store a file, unless it changes meanwhile, which leaves it to the final pass."""
        detector = self.detector(draft.root)
        try:
            with files.open(node) as handle:
                read_at = self.clock_ns()
                before = detector.begin_reading(handle.descriptor)
                content = writer.store_file(handle.descriptor, before.size, has_holes=detector.shows_holes)
                self._note_database(draft.root, node.path, handle.descriptor)
                after = signature_of(os.fstat(handle.descriptor))
        except FileNotFoundError:
            return
        except RunAsUserRequired as error:
            draft.unreadable[node.path] = error
            return
        except OSError as error:
            if error.errno not in READ_ERRNOS:
                raise
            draft.unreadable[node.path] = unreadable(draft.root, node, error)
            return
        if after == before and content.size == before.size:
            draft.table.put(node.path, before, content, racy=detector.is_racy(before, read_at))

    def _note_database(self, root: Root, path: str, descriptor: int) -> None:
        if is_database(os.pread(descriptor, HEADER_BYTES, 0)):
            self._databases[root.name].add(path)

    def _copy(self, files: RootFiles, node: FileNode, spool: Spool) -> SpooledFile:
        detector = self.detector(files.root)
        for _ in range(READ_ATTEMPTS):
            try:
                with files.open(node) as handle:
                    read_at = self.clock_ns()
                    before = detector.begin_reading(handle.descriptor)
                    where = spool.append(handle.descriptor, before.size, self.check, has_holes=detector.shows_holes)
                    self._note_database(files.root, node.path, handle.descriptor)
                    after = os.fstat(handle.descriptor)
                    if where.length < before.size:
                        continue
                    copied = SpooledFile(where, before, detector.is_racy(before, read_at))
                    if signature_of(after) == before:
                        return copied
                    if has_only_grown(handle.descriptor, after, copied, spool):
                        return copied._replace(racy=True)
            except FileNotFoundError as error:
                raise _unstable(files.root, node.path) from error
            except OSError as error:
                if error.errno not in READ_ERRNOS:
                    raise
                raise unreadable(files.root, node, error) from error
        raise _unstable(files.root, node.path)

    def _prove_unmoved(self, draft: Draft, spool: Spool) -> None:
        """Record what moved during the pause. StateUnstable if a copied file changed other than by growing."""
        after = self._walk(draft.root)
        draft.walk.unsettled = after.unsettled or draft.walk.unsettled
        moved = movement(draft.walk, after)
        with RootFiles(after) as files:
            for path, copied in draft.spooled.items():
                try:
                    status = files.stat(path)
                except FileNotFoundError:
                    continue  # it was renamed or removed after it was copied, which ``moved`` says
                if signature_of(status) == copied.signature:
                    continue
                node = FileNode(path, status.st_mode, signature_of(status), status.st_uid, status.st_gid)
                try:
                    handle = files.open(node)
                except (FileNotFoundError, RunAsUserRequired):
                    continue  # another kind of entry replaced it, or it became unreadable, which ``moved`` says
                with handle:
                    if not has_only_grown(handle.descriptor, os.fstat(handle.descriptor), copied, spool):
                        raise _unstable(draft.root, path)
        draft.doubts += doubts(draft, moved, "while the agent was paused")

    def _read_links(self, files: RootFiles, draft: Draft) -> None:
        gone = []
        for node in draft.walk.nodes:
            if node.is_symlink:
                try:
                    draft.links[node.path] = files.read_link(node.path)
                except OSError:
                    gone.append(draft.shown(node.path))
                    draft.vanished.append(node.path)
        if gone:
            draft.doubts.append(f"{len(gone)} symbolic links vanished while they were read: {shown(gone)}")


def _unstable(root: Root, path: str) -> StateUnstable:
    return StateUnstable(
        f"{root.mount_path.rstrip('/')}/{path} changed while the agent was paused: another process is writing it. "
        "Exclude it with spec.state.exclude in the policy, or stop the writer before each safe point."
    )
