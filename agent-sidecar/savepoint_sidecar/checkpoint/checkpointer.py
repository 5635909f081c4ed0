"""The write path in order: prepare, pre-copy, quiesce, final pass, resume, upload, offer, commit.

The authority decides when to take a checkpoint and whether it exists. ``capture`` reads files and ``stage`` values;
this module sets their order, and handles the failure of each step.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, Offer, Result, Welcome
from savepoint.contract.names import ANNOTATION_STATE
from savepoint.contract.vocabulary import CheckpointOutcome, CheckpointPhase, Consistency
from savepoint.errors import RunAsUserRequired, SavepointError, StoreUnavailable, Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Execution
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.history import lineage
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.agent_api.quiesce import Transaction
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.capture.agent_user import AgentUser
from savepoint_sidecar.capture.capture import Capture, ignore_planned, no_check
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt, in_thread
from savepoint_sidecar.checkpoint.failures import resumed_early, to_savepoint_error
from savepoint_sidecar.checkpoint.offer_message import offer_message
from savepoint_sidecar.checkpoint.pack_check import PackCheck
from savepoint_sidecar.checkpoint.parent_checkpoint import ParentCheckpoint
from savepoint_sidecar.failpoint import Failpoints, FailpointWriter
from savepoint_sidecar.files.ownership import ProcessUser
from savepoint_sidecar.stage.components import sdk_components, store_components

log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.1
"""Seconds between checks for an interruption while the attempt waits for the agent's end."""


@dataclass
class FinalState:
    """The progress of an ending agent, updated while its final checkpoint is being taken."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the agent writes nothing more."""
    flush: wire.Flush | None = None
    """The agent's last flush, if there was one."""


class Checkpointer:
    """The write path of one incarnation. Between checkpoints it keeps what makes the next one incremental."""

    def __init__(
        self,
        authority: Authority,
        welcome: Welcome,
        capture: Capture,
        stage: Path,
        *,
        now: Callable[[], datetime],
        failpoints: Failpoints,
        user: ProcessUser,
    ) -> None:
        self._authority, self._welcome, self._capture, self._stage = authority, welcome, capture, stage
        self._key = AgentKey(bytes.fromhex(welcome.key))
        self._now, self._failpoints = now, failpoints
        self._index: ChunkIndex | None = None
        self._pack_check = PackCheck(authority.pack_check_seconds)
        self.agent_user = AgentUser(user, capture.clock_ns())
        self._agent_uid: int | None = None
        self.before_offer: Callable[[str], None] = lambda _: None
        """Called with the attempt, blocking, before what it captured may become the latest checkpoint."""
        self.policy = welcome.policy
        self.parent: ParentCheckpoint | None = None
        """The latest committed checkpoint."""
        self._warnings: list[str] = []
        """The warnings of the last attempt, about what it left out or captured inconsistently."""
        self.has_sdk = False
        """True once an agent with the SDK has connected in this run: its files alone are no longer a checkpoint."""

    def rebase(self, parent: ParentCheckpoint | None) -> None:
        """Continue from a checkpoint that this process did not take; discard the chunk index of the previous one."""
        self.parent, self._index = parent, None

    def require_capturable(self, *, has_values: bool) -> None:
        """Raise Unavailable if files alone would not be a consistent checkpoint, or if there is nothing to capture.

        ``has_values``: the agent's SDK provides its values.
        """
        if has_values:
            return
        if self.has_sdk or (self.parent is not None and sdk_components(self.parent.manifest)):
            raise Unavailable(
                "The agent uses the SDK but provided no values, and files alone would not be consistent with them. The "
                "last checkpoint stays in force; the next one follows the agent's connect()."
            )
        if not self._capture.roots:
            raise Unavailable(
                "There is nothing to capture: the agent has no volume of its own and no state path, and no SDK is "
                f"connected. Name its folders in annotation {ANNOTATION_STATE} of the pod template, or call "
                "savepoint.connect() in it."
            )

    async def take(
        self, attempt: CaptureAttempt, session: ProcessSession | None, final: FinalState | None = None
    ) -> CheckpointOutcome:
        """Take a checkpoint of a running agent or, with ``final``, of one that is ending.

        Raise the SavepointError that explains a failure, after reporting it to the authority and the agent.
        """
        attempt.start, attempt.stop_waiting = self._time(), self._authority.stop_waiting
        reporting = asyncio.ensure_future(self._report_progress(attempt))
        try:
            async with asyncio.timeout(max(0.0, attempt.remaining_seconds)):
                outcome = await self._take(attempt, session, final)
        except Exception as cause:
            if not isinstance(cause, SavepointError | TimeoutError | OSError):
                log.exception("checkpoint attempt failed unexpectedly (attempt=%s)", attempt.id)
            error = to_savepoint_error(cause, attempt)
            await self._report_failure(attempt, session, error)
            raise error from cause
        finally:
            reporting.cancel()
            self._capture.check, self._capture.on_planned = no_check, ignore_planned
        name = self.parent.ref.name if self.parent and outcome != CheckpointOutcome.DEFERRED else ""
        if outcome == CheckpointOutcome.UNCHANGED:
            await self._authority.report_result(
                Result(attempt.id, outcome, pause_milliseconds=attempt.pause_milliseconds)
            )
        if session is not None and attempt.transaction is not None:
            session.send_result(attempt.transaction, outcome, checkpoint=name)
        self._failpoints.reach("after-result")
        return outcome

    async def _report_failure(
        self, attempt: CaptureAttempt, session: ProcessSession | None, error: SavepointError
    ) -> None:
        code, message = error.code, str(error)
        level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
        log.log(level, "checkpoint attempt failed: %s: %s (attempt=%s)", code, message, attempt.id)
        failed = CheckpointOutcome.FAILED
        if session is not None and attempt.transaction is not None:
            session.cancel_transaction(attempt.transaction, error)
            session.send_result(attempt.transaction, failed, reason=code, message=message)
        elif session is not None and attempt.request:
            session.send(wire.Result("", failed, attempt.request, reason=code, message=message))
        uid = error.owner if isinstance(error, RunAsUserRequired) else None
        await self._authority.report_result(Result(attempt.id, failed, code, message, attempt.pause_milliseconds, uid))

    async def _take(
        self, attempt: CaptureAttempt, session: ProcessSession | None, final: FinalState | None
    ) -> CheckpointOutcome:
        if final is None:
            self.require_capturable(has_values=session is not None)
        writer = await in_thread(attempt, lambda: self._open_writer(attempt))
        committed = False
        try:
            with Spool(stage_layout.sidecar_folder(self._stage)) as spool:
                self._capture.check, self._capture.on_planned = attempt.check, attempt.add_planned
                flush: wire.Flush | None = None
                if final is not None:
                    flush, drafts = await self._capture_ending(attempt, final, writer)
                elif session is not None:
                    flush, drafts = await self._capture_paused(attempt, session, writer, spool)
                else:
                    drafts = await in_thread(attempt, lambda: self._read_fuzzy(writer))
                attempt.phase = CheckpointPhase.UPLOADING
                self._agent_uid = await in_thread(attempt, lambda: self.agent_user.examine(drafts))
                changed = await in_thread(attempt, lambda: self._store(attempt, writer, flush, drafts, spool))
            if not changed:
                return CheckpointOutcome.UNCHANGED
            offer = await in_thread(attempt, lambda: self._write_manifest(attempt, writer, flush, session, drafts))
            attempt.phase = CheckpointPhase.COMMITTING
            await in_thread(None, lambda: self.before_offer(attempt.id))
            ref = await self._commit(attempt, offer, offer_message(attempt, offer, writer.manifest, flush))
            committed = ref is not None
            self._failpoints.reach("after-commit")
        except BaseException:
            self._authority.stop_waiting()  # an upload that is stuck must not delay the end of this attempt
            raise
        finally:
            close = writer.commit if committed else writer.abort
            self._index = await in_thread(None, close)
        if ref is None:
            return CheckpointOutcome.DEFERRED
        self._capture.committed(drafts)
        self.parent = ParentCheckpoint(ref, writer.manifest)
        return CheckpointOutcome.READY

    async def _commit(
        self, attempt: CaptureAttempt, offer: lineage.UploadedCheckpoint, message: Offer
    ) -> CheckpointRef | None:
        """Upload the manifest and commit it. Return None if it was left for an authority that cannot be reached."""
        blobs = self._authority.blobs
        try:
            async with asyncio.timeout(attempt.commit_timeout_seconds):
                if attempt.deferrable and not self._authority.connected:
                    raise TimeoutError
                key = manifest_key(offer.name)
                await in_thread(attempt, lambda: blobs.put_new(key, offer.manifest_bytes))
                self._failpoints.reach("before-offer")
                return await self._authority.commit(message)
        except (TimeoutError, Unavailable, StoreUnavailable) as error:
            if not attempt.deferrable:
                raise
            log.warning(
                "cannot commit the checkpoint: %s; leaving it for the operator to commit later (attempt=%s)",
                str(error) or "the operator cannot be reached", attempt.id,
            )  # fmt: skip
        await self._authority.leave_pending(attempt.id, attempt.trigger, attempt.completed, offer.manifest_bytes)
        return None

    async def _capture_paused(
        self, attempt: CaptureAttempt, session: ProcessSession, writer: CheckpointWriter, spool: Spool
    ) -> tuple[wire.Flush, list[Draft]]:
        """Pre-copy, quiesce, run the final pass, resume. The agent waits only from its flush to the resume."""
        policy = self.policy
        transaction = Transaction(attempt.id, float(policy.hold_seconds), attempt.request or None)
        attempt.transaction = transaction
        session.begin_transaction(transaction)
        session.send(wire.Prepare(transaction.id))
        attempt.phase = CheckpointPhase.CAPTURING
        drafts = await in_thread(attempt, lambda: self._capture.precopy(writer))
        attempt.check()
        self._failpoints.reach("before-quiesce")
        attempt.phase = CheckpointPhase.QUIESCING
        timeout = float(policy.quiesce_timeout_seconds)
        session.send(wire.Quiesce(transaction.id, timeout, transaction.hold_seconds, attempt.trigger))
        flush = await transaction.flush(timeout, session.execution.detail or session.execution.step or "")
        attempt.quiesced = self._time()
        self._failpoints.reach("after-quiesce")
        attempt.hold(transaction.hold_seconds)
        finals = await in_thread(attempt, lambda: self._capture.final_pass(writer, drafts, spool))
        self._failpoints.reach("while-quiesced")
        attempt.check()
        attempt.hold(None)
        if not transaction.resume():
            raise resumed_early(transaction)
        attempt.resumed = self._time()
        return flush, finals

    async def _capture_ending(
        self, attempt: CaptureAttempt, final: FinalState, writer: CheckpointWriter
    ) -> tuple[wire.Flush | None, list[Draft]]:
        """Pre-copy while the agent ends, then read the files as it left them. Nothing needs to be paused."""
        attempt.phase = CheckpointPhase.CAPTURING
        precopied = await in_thread(attempt, lambda: self._capture.precopy(writer))
        while not final.ended.is_set():
            attempt.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await final.ended.wait()
        self.require_capturable(has_values=final.flush is not None)
        drafts = await in_thread(attempt, lambda: self._read_fuzzy(writer, precopied))
        if final.flush is not None:
            await in_thread(attempt, lambda: self._capture.prove_unmoved(drafts))
        return final.flush, drafts

    def _open_writer(self, attempt: CaptureAttempt) -> CheckpointWriter:
        def progress(done: int) -> None:
            self._failpoints.reach("while-storing")
            attempt.report_stored(done)

        blobs = self._authority.blobs
        parent = self.parent.manifest if self.parent else None
        if not attempt.deferrable:  # the last checkpoint of a pod has no time for it
            self._pack_check.run_if_due(blobs, parent, attempt.monotonic(), attempt.check)
        index, self._index = self._index, None
        return CheckpointWriter(
            blobs, FailpointWriter(blobs, self._failpoints), self._key, self._welcome.epoch, parent,
            index=index,
            options=WriterOptions(
                progress=progress,
                random_bytes=self._authority.random_bytes,
                shrink_percent=self.policy.shrink_percent,
                lost_packs=self._pack_check.lost_of(parent),
            ),
        )  # fmt: skip

    def _read_fuzzy(self, writer: CheckpointWriter, precopied: Sequence[Draft] = ()) -> list[Draft]:
        drafts = self._capture.read_fuzzy(writer, stage_layout.sidecar_folder(self._stage), precopied)
        if not precopied:
            self._capture.note_moved(drafts)
        return drafts

    def _store(
        self,
        attempt: CaptureAttempt,
        writer: CheckpointWriter,
        flush: wire.Flush | None,
        drafts: list[Draft],
        spool: Spool,
    ) -> bool:
        """Store the rest of the state. Return False if it equals the parent's, so that no commit is needed."""
        warnings = [text for draft in drafts for text in self._capture.warnings(draft)]
        changed = self._store_components(attempt, writer, flush, drafts, spool)
        for warning in warnings if changed or warnings != self._warnings else ():
            log.warning("skipped or inconsistent in the checkpoint: %s (attempt=%s)", warning, attempt.id)
        self._warnings = warnings
        return changed

    def _store_components(
        self,
        attempt: CaptureAttempt,
        writer: CheckpointWriter,
        flush: wire.Flush | None,
        drafts: list[Draft],
        spool: Spool,
    ) -> bool:
        if flush is not None:
            attempt.add_planned(sum(entry.size for component in flush.components for entry in component.entries))
            store_components(writer, self._stage, flush.components)
        self._capture.store(writer, drafts, spool)
        if attempt.completed or self.parent is None:
            return bool(attempt.completed or writer.components)
        if self._pack_check.lost_of(self.parent.manifest):
            return True  # the same state, but the parent cannot be restored any more
        stored = {(each.name, each.kind, each.layout, each.digest) for each in writer.components}
        return stored != {(each.name, each.kind, each.layout, each.digest) for each in self.parent.manifest.components}

    def _write_manifest(
        self,
        attempt: CaptureAttempt,
        writer: CheckpointWriter,
        flush: wire.Flush | None,
        session: ProcessSession | None,
        drafts: Sequence[Draft],
    ) -> lineage.UploadedCheckpoint:
        self._failpoints.reach("before-manifest")
        connect = session.connect if session is not None else None
        execution = flush.execution if flush is not None else wire.Execution()
        return writer.finish(
            namespace=self._welcome.namespace,
            agent=self._welcome.agent,
            attempt=attempt.id,
            created=attempt.quiesced or self._time(),
            consistency=self._consistency(attempt, flush, drafts),
            parent=self.parent.as_parent if self.parent else None,
            schema_version=connect.schema_version if connect else "",
            config_hash=self._welcome.config_hash,
            dependencies=connect.dependencies if connect else {},
            architecture=connect.architecture if connect else "",
            execution=Execution(execution.step, execution.open, execution.uncertain),
            agent_uid=self._agent_uid,
            capture=self._capture.report(drafts),
            put=False,
        )

    @staticmethod
    def _consistency(attempt: CaptureAttempt, flush: wire.Flush | None, drafts: Sequence[Draft]) -> Consistency:
        """Return Application only if everything was captured, and nothing moved while the agent was paused."""
        if flush is None:
            return Consistency.FUZZY
        if all(draft.is_exact for draft in drafts):
            return Consistency.APPLICATION
        log.warning(
            "the checkpoint is Fuzzy, for the reasons above, although the agent paused (attempt=%s)", attempt.id
        )
        return Consistency.FUZZY

    async def _report_progress(self, attempt: CaptureAttempt) -> None:
        while True:
            await self._authority.report_progress(attempt.progress())
            await asyncio.sleep(PROGRESS_SECONDS)

    def _time(self) -> str:
        return time_text(self._now())
