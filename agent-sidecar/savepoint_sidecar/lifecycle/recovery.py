"""Recovery of a connecting agent: files and values of the last checkpoint, or nothing on its first connect.

It also follows the parent checkpoint and the policy that the authority announces. It takes no checkpoint; the caller
holds the incarnation's state lock.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, Welcome
from savepoint.contract.vocabulary import OnContainerRestart, RestoreOutcome
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.object_keys import manifest_key

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.checkpoint.capture_attempt import in_thread
from savepoint_sidecar.checkpoint.checkpointer import Checkpointer
from savepoint_sidecar.files.ownership import require_restorable
from savepoint_sidecar.lifecycle.config import IncarnationConfig
from savepoint_sidecar.restore import in_place
from savepoint_sidecar.restore.aside import describe, label_of
from savepoint_sidecar.restore.left_behind import moved_components
from savepoint_sidecar.stage.components import read_index, restore_components, sdk_components
from savepoint_sidecar.stage.small_files import create_small_file, read_small_file

log = logging.getLogger(__name__)

LOAD_ATTEMPTS: Final = 20
LOAD_RETRY_SECONDS: Final = 3.0
SDK_RUN_MAX_BYTES: Final = 32


class Recovery:
    """The parent checkpoint of one incarnation, and its restore."""

    def __init__(
        self,
        authority: Authority,
        welcome: Welcome,
        config: IncarnationConfig,
        capture: Capture,
        checkpointer: Checkpointer,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._now = now
        self._authority, self._welcome, self._config = authority, welcome, config
        self._capture, self._checkpointer = capture, checkpointer
        self._key = AgentKey(bytes.fromhex(welcome.key))
        self._roots_match_parent = False
        self._has_records = False
        self._newer: Welcome | None = None

    async def start(self) -> None:
        """Load the parent checkpoint, and note whether the files in the roots are known to match it."""
        ref = self._welcome.parent
        self._checkpointer.has_sdk = await asyncio.to_thread(self._read_sdk_run)
        if ref is None:
            return
        await self._load_with_retries(ref)
        self._roots_match_parent = ref.sequence == self._config.roots_sequence
        # The first checkpoint reads every file: what another process recorded proves nothing about these inodes.

    def handle_welcome(self, newer: Welcome) -> None:
        """Remember a later welcome of the authority until ``rebase``."""
        self._newer = newer

    async def rebase(self) -> None:
        """Adopt the policy of the latest welcome, and its checkpoint if that is newer than the known one."""
        newer, parent = self._newer, self._checkpointer.parent
        if newer is None:
            return
        self._capture.apply(newer.policy)
        self._checkpointer.policy = newer.policy
        ref = newer.parent
        if ref is not None and (parent is None or ref.sequence > parent.ref.sequence):
            log.info("continuing from a checkpoint that this process did not know (checkpoint=%s)", ref.name)
            await self._load(ref)
            self._capture.tables = {root.name: FileTable() for root in self._config.roots}
        if self._newer is newer:  # unless another welcome has arrived in the meantime
            self._newer = None

    async def record_connect(self) -> bool:
        """Record that an agent with the SDK connects. Return True if it is the first in its run.

        Nothing can be restored then.
        """
        had_sdk = self._has_records = self._checkpointer.has_sdk
        await asyncio.to_thread(self._write_sdk_run)
        parent = self._checkpointer.parent
        return not had_sdk and (parent is None or not sdk_components(parent.manifest))

    async def restore(self) -> tuple[wire.Restored | None, tuple[wire.Component, ...]]:
        """Return the values of the last checkpoint, and bring the files to it where they may not stay as they are.

        They stay if the agent starts again in place: what finished steps did to them is there, and the journal in the
        stage has the steps. Raise what the store raises.
        """
        parent = self._checkpointer.parent
        if parent is None:
            if self._config.roots:
                log.warning("the agent crashed before its first checkpoint; its files stay as the crash left them")
            return None, ()
        roots_match, self._roots_match_parent = self._roots_match_parent, False
        stage, sequence = self._config.stage, parent.ref.sequence
        restored = stage_layout.files_restored_file(stage).exists()
        stays = self._has_records and not restored and self._keeps_files
        staged = await asyncio.to_thread(read_index, stage, sequence) if roots_match else None
        remedy = parent_checkpoint.naming_remedy(self._config.damage_remedy)
        with remedy, parent.reader(self._authority.blobs, self._key) as reader:
            if not roots_match and not stays:
                agent_uid = self._checkpointer.agent_user.connected
                if agent_uid is None:
                    agent_uid = parent.manifest.agent_uid
                require_restorable(self._config.user, agent_uid, parent.ref.name)
                restored = bool(self._config.roots)
                label = label_of(self._now())
                if restored:
                    stage_layout.files_restored_file(stage).touch()
                report = await in_thread(None, lambda: in_place.restore_in_place(reader, self._capture, label))
                log.info("files restored: %s (checkpoint=%s)", report, parent.ref.name)
                for each in report.replaced:
                    log.warning("files that %s does not have: %s", parent.ref.name, describe(each))
            components = staged
            if components is None:
                components = await in_thread(None, lambda: restore_components(reader, stage, str(sequence)))
        how = "Restarted" if staged is None else "Restored"
        files = RestoreOutcome.RESTORED if restored else RestoreOutcome.KEPT_LOCAL
        return restored_message(parent.ref, how, files if self._config.roots else ""), components

    async def forget_restore(self, session: ProcessSession) -> None:
        """Forget that files were restored, once a process has taken over its values: later ones start in place."""
        await session.opened.wait()
        stage_layout.files_restored_file(self._config.stage).unlink(missing_ok=True)

    @property
    def _keeps_files(self) -> bool:
        return self._checkpointer.policy.on_container_restart != OnContainerRestart.RESTORE

    async def prepare_reads(self) -> None:
        """Keep the last checkpoint readable without the authority: the agent may crash in place at any time."""
        parent = self._checkpointer.parent
        if parent is not None:
            await self._authority.prepare_reads((manifest_key(parent.ref.manifest.name), *parent.pack_keys()))

    async def _load_with_retries(self, ref: CheckpointRef) -> None:
        """Load the parent. A store that is briefly unreachable must not restart the container, with its back-off."""
        for _ in range(LOAD_ATTEMPTS - 1):
            try:
                return await self._load(ref)
            except (StoreUnavailable, Unavailable) as error:
                log.warning(
                    "cannot load the checkpoint: %s: %s; retrying in %.0f s (checkpoint=%s)",
                    error.reason, error, LOAD_RETRY_SECONDS, ref.name,
                )  # fmt: skip
                await asyncio.sleep(LOAD_RETRY_SECONDS)
        await self._load(ref)

    async def _load(self, ref: CheckpointRef) -> None:
        await self._authority.prepare_reads((manifest_key(ref.manifest.name),))
        blobs, welcome = self._authority.blobs, self._welcome
        loaded = await asyncio.to_thread(
            lambda: parent_checkpoint.load(blobs, self._key, welcome.namespace, welcome.agent, ref)
        )
        moved = moved_components(loaded.manifest, self._config.roots, welcome.policy)
        self._checkpointer.rebase(loaded.with_component_names({**moved, **self._config.component_names}))
        await self.prepare_reads()

    def _read_sdk_run(self) -> bool:
        try:
            return read_small_file(self._sdk_run_file, SDK_RUN_MAX_BYTES) == str(self._welcome.run)
        except (OSError, ValueError):
            return False

    def _write_sdk_run(self) -> None:
        self._checkpointer.has_sdk = True
        with create_small_file(self._sdk_run_file) as file:
            file.write(str(self._welcome.run).encode())

    @property
    def _sdk_run_file(self) -> Path:
        return stage_layout.sdk_run_file(self._config.stage)


def restored_message(ref: CheckpointRef | None, how: str, files: str = "") -> wire.Restored | None:
    """Return the part of the answer to connect that says what was restored."""
    return None if ref is None else wire.Restored(ref.name, ref.number, ref.sequence, ref.time, how, files)
