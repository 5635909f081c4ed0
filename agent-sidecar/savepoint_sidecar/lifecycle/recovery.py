"""What an agent that connects gets back: files and values at one cut, or the knowledge that nothing is to be brought.

It knows the last cut and whether this run's agent has the SDK. It takes no checkpoint; whoever calls holds the
incarnation's lock.
"""

import asyncio
import logging
from pathlib import Path
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, Welcome
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.object_keys import manifest_key

from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.checkpoint.capture_attempt import in_thread
from savepoint_sidecar.checkpoint.checkpointer import Checkpointer
from savepoint_sidecar.lifecycle.config import IncarnationConfig
from savepoint_sidecar.restore import in_place
from savepoint_sidecar.stage.components import read_index, restore_components, sdk_components
from savepoint_sidecar.stage.small_files import create_small_file, read_small_file

log = logging.getLogger(__name__)

LOAD_TRIES: Final = 20
LOAD_AGAIN_SECONDS: Final = 3.0
SDK_MOST_BYTES: Final = 32


class Recovery:
    """Of one incarnation."""

    def __init__(
        self,
        authority: Authority,
        welcome: Welcome,
        terms: IncarnationConfig,
        capture: Capture,
        checkpointer: Checkpointer,
    ) -> None:
        self._authority, self._welcome, self._terms = authority, welcome, terms
        self._capture, self._checkpointer = capture, checkpointer
        self._key = AgentKey(bytes.fromhex(welcome.key))
        self._at_cut = False
        self._newer: Welcome | None = None

    async def begin(self) -> None:
        """Know the cut that the authority names, and what stands in the roots if they are known to be there."""
        parent = self._welcome.parent
        self._checkpointer.sdk = await asyncio.to_thread(self._knows_sdk)
        if parent is None:
            return
        await self._load_patiently(parent)
        self._at_cut = parent.sequence == self._terms.cut_sequence
        current = self._checkpointer.cut
        if self._at_cut and current is not None:
            with current.reader(self._authority.blobs, self._key) as reader:
                await in_thread(None, lambda: in_place.record_files(reader, self._capture))

    def heard(self, newer: Welcome) -> None:
        """The authority said again where the lineage stands."""
        self._newer = newer

    async def rebase(self) -> None:
        """Go on from what the authority last said: its policy, and its newest checkpoint if that is not ours."""
        newer, current = self._newer, self._checkpointer.cut
        if newer is None:
            return
        self._capture.exclude(newer.policy.exclude)
        self._checkpointer.policy = newer.policy
        parent = newer.parent
        if parent is not None and (current is None or parent.sequence > current.ref.sequence):
            log.info("the lineage has come to %s without us: going on from there", parent.name)
            await self._load(parent)
            self._capture.tables = {root.name: FileTable() for root in self._terms.roots}
        if self._newer is newer:  # it may have been said again meanwhile
            self._newer = None

    async def is_first(self) -> bool:
        """Whether the agent connects for the first time in its run, so that nothing of it can be brought back."""
        known = self._checkpointer.sdk
        await asyncio.to_thread(self._know_sdk)
        current = self._checkpointer.cut
        return not known and (current is None or not sdk_components(current.manifest))

    async def bring_back(self) -> tuple[wire.Restored | None, tuple[wire.Component, ...]]:
        """Let the files stand at the last cut, and hand over its values. Raises what the store says."""
        current = self._checkpointer.cut
        if current is None:
            if self._terms.roots:
                log.warning("the agent crashed before its first checkpoint: files are as the crash left them")
            return None, ()
        at_cut, self._at_cut = self._at_cut, False
        stage, sequence = self._terms.stage, current.ref.sequence
        left = await asyncio.to_thread(read_index, stage, sequence) if at_cut else None
        with current.reader(self._authority.blobs, self._key) as reader:
            if not at_cut:
                mended = await in_thread(None, lambda: in_place.restore_in_place(reader, self._capture))
                log.info("files are at %s: %s", current.ref.name, mended)
            components = left
            if components is None:
                components = await in_thread(None, lambda: restore_components(reader, stage, str(sequence)))
        return restored(current.ref, "Restarted" if left is None else "Restored"), components

    async def expect_reads(self) -> None:
        """Be able to read the last cut even when the authority is away: a crash in place may come at any time."""
        current = self._checkpointer.cut
        if current is not None:
            await self._authority.prepare_reads((manifest_key(current.ref.manifest.name), *current.keys()))

    async def _load_patiently(self, parent: CheckpointRef) -> None:
        """A store that is away for a moment must not cost the container a restart and its back-off."""
        for _ in range(LOAD_TRIES - 1):
            try:
                return await self._load(parent)
            except (StoreUnavailable, Unavailable) as error:
                log.warning("%s: %s; trying again", error.reason, error)
                await asyncio.sleep(LOAD_AGAIN_SECONDS)
        await self._load(parent)

    async def _load(self, parent: CheckpointRef) -> None:
        await self._authority.prepare_reads((manifest_key(parent.manifest.name),))
        blobs, welcome = self._authority.blobs, self._welcome
        loaded = await asyncio.to_thread(
            lambda: parent_checkpoint.load(blobs, self._key, welcome.namespace, welcome.agent, parent)
        )
        self._checkpointer.rebase(loaded)
        await self.expect_reads()

    def _knows_sdk(self) -> bool:
        try:
            return read_small_file(self._sdk_file, SDK_MOST_BYTES) == str(self._welcome.run)
        except (OSError, ValueError):
            return False

    def _know_sdk(self) -> None:
        self._checkpointer.sdk = True
        with create_small_file(self._sdk_file) as file:
            file.write(str(self._welcome.run).encode())

    @property
    def _sdk_file(self) -> Path:
        return stage_layout.sdk_run_file(self._terms.stage)


def restored(ref: CheckpointRef | None, how: str) -> wire.Restored | None:
    """What came back, as the agent is told."""
    return None if ref is None else wire.Restored(ref.name, ref.number, ref.sequence, ref.time, how)
