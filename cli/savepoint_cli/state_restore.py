"""The state folders of a run before its agent starts: restored if they are lost, otherwise left as they are.

A restore deletes nothing: it moves aside what is in its way and reports the new place.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, Welcome
from savepoint.errors import TargetNotEmpty
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Manifest
from savepoint_sidecar.authority.authority import Blobs
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore.aside import describe, label_of
from savepoint_sidecar.restore.file_restore import InPlace, ready_marker, restore_files, root_actions
from savepoint_sidecar.stage.components import sdk_components
from savepoint_sidecar.stage.small_files import read_small_file

from savepoint_cli.command_record import check_command, record_command
from savepoint_cli.run_options import RunOptions
from savepoint_cli.state_folders import make_folder, match_components, nested

SDK_RUN_MAX_BYTES: Final = 32


class StateRestore:
    """The restore of one run's state folders."""

    def __init__(
        self,
        options: RunOptions,
        roots: Sequence[Root],
        stage: Path,
        failpoints: Failpoints,
        *,
        now: Callable[[], datetime],
        report: Callable[[str], None],
    ) -> None:
        self._options, self._roots, self._stage, self._failpoints = options, tuple(roots), stage, failpoints
        self._now, self._report = now, report

    def run(self, welcome: Welcome, blobs: Blobs) -> dict[str, str]:
        """Restore the folders that are empty, half restored, or rolled back. Blocking.

        Returns:
            New names of the checkpoint's components, by the names under which it was stored.

        Raises:
            AgentNameTaken: The run is one of another command. Nothing is changed.
            StateLeftBehind: The checkpoint holds a folder that this run does not name. Nothing is changed.
            TargetNotEmpty: A folder holds files of unknown origin. Nothing is changed.
            SavepointError: The checkpoint cannot be read, or a folder cannot be written.
        """
        for inner, outer in nested(self._options.states):
            self._report(f"{inner} is part of the state folder {outer}: it is captured and restored with that one")
        parent = welcome.parent
        names: dict[str, str] = {}
        if parent is None:
            self._check_command(welcome, has_values=False)
            for root in self._roots:
                make_folder(root.path)
            root_actions(self._roots, welcome, None, self._stage)
        else:
            with parent_checkpoint.naming_remedy(damage_remedy(self._options.store)):
                names = self._restore(welcome, parent, blobs)
        for path in self._options.states:  # those in another state folder: only now, as that one had to be empty
            make_folder(path)
        record_command(self._stage, welcome.run, self._options)
        return names

    def _check_command(self, welcome: Welcome, *, has_values: bool) -> None:
        has_values = has_values or stage_has_sdk(self._stage, welcome.run)
        check_command(self._stage, welcome.run, self._options, has_values=has_values)

    def _restore(self, welcome: Welcome, parent: CheckpointRef, blobs: Blobs) -> dict[str, str]:
        key = AgentKey(bytes.fromhex(welcome.key))
        loaded = parent_checkpoint.load(blobs, key, welcome.namespace, welcome.agent, parent)
        self._check_command(welcome, has_values=bool(sdk_components(loaded.manifest)))
        names = match(self._options, self._roots, loaded.manifest, parent.name)
        loaded = loaded.with_component_names(names)
        for root in self._roots:
            make_folder(root.path)
        to_restore = self._roots_to_restore(welcome, parent, loaded.manifest)
        if to_restore:
            marker = ready_marker(welcome, f"epoch-{welcome.epoch}", parent)
            capture = Capture(self._roots, welcome.policy.exclude, time.time_ns)
            in_place = InPlace(capture, label_of(self._now()), keeps_half_restored=True)
            stage_layout.files_restored_file(self._stage).touch()
            try:
                with loaded.reader(blobs, key) as reader:
                    restore_files(reader, to_restore, marker, self._failpoints, in_place=in_place, stage=self._stage)
            finally:
                for each in in_place.report.replaced:
                    self._report(describe(each))
            self._report(f"restored {', '.join(root.mount_path for root in to_restore)} from {parent.name}")
        return names

    def _roots_to_restore(self, welcome: Welcome, parent: CheckpointRef, manifest: Manifest) -> list[Root]:
        found: list[Root] = []
        for root in self._roots:
            try:
                actions = root_actions([root], welcome, manifest, self._stage)
            except TargetNotEmpty as error:
                if self._options.start_from:
                    found.append(root)
                    continue
                raise TargetNotEmpty(
                    f"{root.mount_path} contains files that are not from a run of agent {welcome.agent}, and "
                    f"checkpoint {parent.name} exists: nothing was overwritten; empty the folder to restore the "
                    "checkpoint, or choose another name with --agent to keep the files and start fresh"
                ) from error
            goes_back = self._options.restores_files and manifest.component(root.component) is not None
            found += [each for each, action in actions.items() if goes_back or action == "restore"]
        return found


def match(options: RunOptions, roots: Sequence[Root], manifest: Manifest, checkpoint: str) -> dict[str, str]:
    """Return the new names of a checkpoint's file trees; see ``match_components``."""
    moved: Mapping[str, Path] = options.moved_states
    return match_components(manifest, roots, moved=moved, checkpoint=checkpoint, dropped=options.dropped_states)


def damage_remedy(store: Path) -> str:
    """Return what to do about a checkpoint that is damaged."""
    return (
        f"`savepoint verify --all {store}` shows which checkpoints are whole; start from one of them with "
        "`savepoint run --from CHECKPOINT`"
    )


def discard_journal(stage: Path, run: int, rolled_back_at: int | None) -> None:
    """Remove the run's journal once for each rollback: what followed the chosen checkpoint must not be replayed."""
    note = stage_layout.rolled_back_file(stage)
    if rolled_back_at is None or (note.exists() and note.read_text() == str(rolled_back_at)):
        return
    journal = stage_layout.journal_folder(stage, run)
    if journal.exists():
        shutil.rmtree(journal)
    note.write_text(str(rolled_back_at))


def stage_has_sdk(stage: Path, run: int) -> bool:
    """Return whether an agent with the SDK has connected in this run, and may have journaled steps."""
    try:
        return read_small_file(stage_layout.sdk_run_file(stage), SDK_RUN_MAX_BYTES) == str(run)
    except (OSError, ValueError):
        return False
