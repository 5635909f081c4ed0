"""The write path on one screen: prepare, pre-copy, quiesce, final pass, resume, upload, offer, committed.

When to take a checkpoint is the authority's to say, whether it exists too; how files and values are read is known to
``capture`` and ``components``. Here is the order of things, and what happens when one of them fails.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, ComponentSummary, ObjectName, Offer, Result, Welcome
from savepoint.contract.names import ANNOTATION_STATE
from savepoint.errors import SavepointError, StoreUnavailable, Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Execution, Manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.history import lineage
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.agent_api.quiesce import Transaction
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.capture.capture import Capture, ignore_planned, no_check
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt, in_thread
from savepoint_sidecar.checkpoint.parent_checkpoint import ParentCheckpoint
from savepoint_sidecar.failpoint import Failpoints, WatchedWriter
from savepoint_sidecar.stage.components import sdk_components, store_components

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
LOOK_SECONDS = 0.1
"""How often a wait for the agent's end looks whether it was interrupted."""

CheckpointOutcome = Literal["Ready", "Unchanged", "Deferred"]
"""Deferred: finished, and left for an authority that could not be reached."""


@dataclass
class FinalState:
    """How an agent ends, for the checkpoint that is taken meanwhile."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """The agent writes nothing more."""
    flush: wire.Flush | None = None
    """What it handed over before that."""


class Checkpointer:
    """Takes one checkpoint after the other, and remembers between them what makes the next one small."""

    def __init__(
        self,
        authority: Authority,
        welcome: Welcome,
        capture: Capture,
        stage: Path,
        *,
        now: Callable[[], datetime],
        failpoints: Failpoints,
    ) -> None:
        self._authority, self._welcome, self._capture, self._stage = authority, welcome, capture, stage
        self._key = AgentKey(bytes.fromhex(welcome.key))
        self._now, self._failpoints = now, failpoints
        self._index: ChunkIndex | None = None
        self.policy = welcome.policy
        self.cut: ParentCheckpoint | None = None
        self.sdk = False
        """The agent of this run has connected once: its files alone are no cut any more."""

    def rebase(self, cut: ParentCheckpoint | None) -> None:
        """The lineage goes on from another cut than this process made: nothing remembered holds any more."""
        self.cut, self._index = cut, None

    def require_values(self, at_hand: bool) -> None:
        """Unavailable if files alone would not be a cut: the agent has the SDK, and it has handed over no values."""
        if at_hand:
            return
        if self.sdk or (self.cut is not None and sdk_components(self.cut.manifest)):
            raise Unavailable(
                "The agent has the SDK and has handed over no values: files alone would not be one cut. The last "
                "checkpoint stays; the next one follows the agent's connect()."
            )
        if not self._capture.roots:
            raise Unavailable(
                "There is nothing to capture: the agent has no volume of its own and no state path, and no SDK is "
                f"connected. Name its folders in annotation {ANNOTATION_STATE} of the pod template, or call "
                "savepoint.connect() in it."
            )

    async def take(
        self, attempt: CaptureAttempt, session: ProcessSession | None, last: "FinalState | None" = None
    ) -> CheckpointOutcome:
        """Take a checkpoint, of a running agent or, with ``last``, of one that ends.

        A SavepointError says why there is none; the authority and the agent have been told then.
        """
        attempt.start, attempt.stop_waiting = self._time(), self._authority.stop_waiting
        telling = asyncio.ensure_future(self._tell_progress(attempt))
        try:
            async with asyncio.timeout(max(0.0, attempt.left_seconds)):
                taken = await self._take(attempt, session, last)
        except (SavepointError, TimeoutError, OSError) as problem:
            error = _as_ours(problem, attempt)
            code = error.code
            level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
            log.log(level, "checkpoint attempt %s failed: %s: %s", attempt.id, code, error)
            if session is not None and attempt.transaction is not None:
                session.cancel(attempt.transaction, error)
                session.result(attempt.transaction, "Failed", reason=code, message=str(error))
            elif session is not None and attempt.request:
                session.send(wire.Result("", "Failed", attempt.request, reason=code, message=str(error)))
            await self._authority.result(Result(attempt.id, "Failed", code, str(error), attempt.pause_milliseconds))
            raise error from problem
        finally:
            telling.cancel()
            self._capture.check, self._capture.on_planned = no_check, ignore_planned
        name = self.cut.ref.name if self.cut and taken != "Deferred" else ""
        if taken == "Unchanged":
            await self._authority.result(Result(attempt.id, taken, pause_milliseconds=attempt.pause_milliseconds))
        if session is not None and attempt.transaction is not None:
            session.result(attempt.transaction, taken, checkpoint=name)
        self._failpoints.reach("after-result")
        return taken

    async def _take(
        self, attempt: CaptureAttempt, session: ProcessSession | None, last: "FinalState | None"
    ) -> CheckpointOutcome:
        if last is None:
            self.require_values(session is not None)
        writer = await in_thread(attempt, lambda: self._open_writer(attempt))
        committed = False
        try:
            with Spool(stage_layout.sidecar_folder(self._stage)) as pool:
                self._capture.check, self._capture.on_planned = attempt.check, attempt.plan
                flush: wire.Flush | None = None
                if last is not None:
                    flush, drafts = await self._await_end(attempt, last, writer)
                elif session is not None:
                    flush, drafts = await self._pause(attempt, session, writer, pool)
                else:
                    drafts = await in_thread(attempt, lambda: self._read_running(writer))
                attempt.stage = "Uploading"
                changed = await in_thread(attempt, lambda: self._store(attempt, writer, flush, drafts, pool))
            if not changed:
                return "Unchanged"
            offer = await in_thread(attempt, lambda: self._finish(attempt, writer, flush, session))
            attempt.stage = "Committing"
            ref = await self._commit(attempt, offer, _offer(attempt, offer, writer.manifest, flush))
            committed = ref is not None
            self._failpoints.reach("after-commit")
        finally:
            close = writer.commit if committed else writer.abort
            self._index = await in_thread(None, close)
        if ref is None:
            return "Deferred"
        self._capture.committed(drafts)
        self.cut = ParentCheckpoint(ref, writer.manifest)
        return "Ready"

    async def _commit(self, attempt: CaptureAttempt, offer: lineage.Offer, message: Offer) -> CheckpointRef | None:
        """Put the manifest and have it committed; None if it was left for an authority that cannot be reached."""
        blobs = self._authority.blobs
        try:
            async with asyncio.timeout(attempt.patience_seconds):
                if attempt.deferrable and not self._authority.connected:
                    raise TimeoutError
                key = manifest_key(offer.name)
                await in_thread(attempt, lambda: blobs.put_new(key, offer.manifest_bytes))
                self._failpoints.reach("before-offer")
                return await self._authority.commit(message)
        except (TimeoutError, Unavailable, StoreUnavailable) as error:
            if not attempt.deferrable:
                raise
            log.warning("checkpoint attempt %s is left for the operator: it cannot be reached (%s)", attempt.id, error)
        await self._authority.leave_pending(attempt.id, attempt.trigger, attempt.completed, offer.manifest_bytes)
        return None

    async def _pause(
        self, attempt: CaptureAttempt, session: ProcessSession, writer: CheckpointWriter, pool: Spool
    ) -> tuple[wire.Flush, list[Draft]]:
        """Pre-copy, quiesce, final pass, resume: the only part in which the agent waits."""
        policy = self.policy
        transaction = Transaction(attempt.id, float(policy.hold_seconds), attempt.request or None)
        attempt.transaction = transaction
        session.begin(transaction)
        session.send(wire.Prepare(transaction.id))
        attempt.stage = "Capturing"
        drafts = await in_thread(attempt, lambda: self._capture.precopy(writer))
        attempt.check()
        self._failpoints.reach("before-quiesce")
        attempt.stage = "Quiescing"
        timeout = float(policy.quiesce_timeout_seconds)
        session.send(wire.Quiesce(transaction.id, timeout, transaction.hold_seconds, attempt.trigger))
        flush = await transaction.flush(timeout, session.execution.detail or session.execution.step or "")
        attempt.quiesced = self._time()
        self._failpoints.reach("after-quiesce")
        attempt.hold(transaction.hold_seconds)
        finals = await in_thread(attempt, lambda: self._capture.final_pass(writer, drafts, pool))
        self._failpoints.reach("while-quiesced")
        attempt.check()
        attempt.hold(None)
        if not transaction.resume():
            raise session_gone_on(transaction)
        attempt.resumed = self._time()
        return flush, finals

    async def _await_end(
        self, attempt: CaptureAttempt, last: "FinalState", writer: CheckpointWriter
    ) -> tuple[wire.Flush | None, list[Draft]]:
        """Pre-copy while the agent ends, then the files as it left them: nothing waits, so nothing is paused."""
        attempt.stage = "Capturing"
        before = await in_thread(attempt, lambda: self._capture.precopy(writer))
        while not last.ended.is_set():
            attempt.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await last.ended.wait()
        self.require_values(last.flush is not None)
        return last.flush, await in_thread(attempt, lambda: self._read_running(writer, before))

    def _open_writer(self, attempt: CaptureAttempt) -> CheckpointWriter:
        def progress(done: int) -> None:
            self._failpoints.reach("while-storing")
            attempt.stored(done)

        index, self._index = self._index, None
        blobs = self._authority.blobs
        parent = self.cut.manifest if self.cut else None
        return CheckpointWriter(
            blobs, WatchedWriter(blobs, self._failpoints), self._key, self._welcome.epoch, parent,
            index=index, progress=progress, random_bytes=self._authority.random_bytes,
        )  # fmt: skip

    def _read_running(self, writer: CheckpointWriter, before: Sequence[Draft] = ()) -> list[Draft]:
        return self._capture.read_fuzzy(writer, stage_layout.sidecar_folder(self._stage), before)

    def _store(
        self,
        attempt: CaptureAttempt,
        writer: CheckpointWriter,
        flush: wire.Flush | None,
        drafts: list[Draft],
        pool: Spool,
    ) -> bool:
        """Store what is still to be stored; whether anything differs from the parent, so that it is worth a commit."""
        for warning in (text for draft in drafts for text in (*draft.walk.skipped, *draft.warnings)):
            log.warning("not as it stands in checkpoint %s: %s", attempt.id, warning)
        if flush is not None:
            attempt.plan(sum(entry.size for component in flush.components for entry in component.entries))
            store_components(writer, self._stage, flush.components)
        self._capture.store(writer, drafts, pool)
        if attempt.completed or self.cut is None:
            return bool(attempt.completed or writer.components)
        rows = {(each.name, each.kind, each.layout, each.digest) for each in writer.components}
        return rows != {(each.name, each.kind, each.layout, each.digest) for each in self.cut.manifest.components}

    def _finish(
        self,
        attempt: CaptureAttempt,
        writer: CheckpointWriter,
        flush: wire.Flush | None,
        session: ProcessSession | None,
    ) -> lineage.Offer:
        self._failpoints.reach("before-manifest")
        hello = session.hello if session is not None else None
        execution = flush.execution if flush is not None else wire.Execution()
        return writer.finish(
            namespace=self._welcome.namespace,
            agent=self._welcome.agent,
            attempt=attempt.id,
            created=attempt.quiesced or self._time(),
            consistency="Application" if flush is not None else "Fuzzy",
            parent=self.cut.parent if self.cut else None,
            schema_version=hello.schema_version if hello else "",
            config_hash=self._welcome.config_hash,
            dependencies=hello.dependencies if hello else {},
            architecture=hello.architecture if hello else "",
            execution=Execution(execution.step, execution.open, execution.uncertain),
            put=False,
        )

    async def _tell_progress(self, attempt: CaptureAttempt) -> None:
        while True:
            await self._authority.progress(attempt.progress())
            await asyncio.sleep(PROGRESS_SECONDS)

    def _time(self) -> str:
        return time_text(self._now())


def session_gone_on(transaction: Transaction) -> SavepointError:
    """The error for an agent that did not wait any longer."""
    with suppress(asyncio.InvalidStateError):
        error = transaction.flushed.exception()
        if isinstance(error, SavepointError):
            return error
    return Unavailable("the agent went on, or ended, before everything was taken; nothing of this attempt counts")


def _as_ours(problem: Exception, attempt: CaptureAttempt) -> SavepointError:
    if isinstance(problem, SavepointError):
        return problem
    if isinstance(problem, TimeoutError):
        try:
            attempt.check()
        except SavepointError as error:
            return error
    if isinstance(problem, OSError):
        return Unavailable(f"the state could not be read: {problem.strerror or problem}")
    return Unavailable(f"the attempt failed: {problem}")


def _offer(attempt: CaptureAttempt, offer: lineage.Offer, manifest: Manifest, flush: wire.Flush | None) -> Offer:
    execution = flush.execution if flush is not None else wire.Execution()
    return Offer(
        attempt=attempt.id,
        manifest=ObjectName(offer.name, offer.size),
        packs=tuple(ObjectName(pack.name, pack.size) for pack in offer.packs),
        trigger=attempt.trigger,
        consistency=manifest.consistency,
        logical_bytes=offer.logical,
        stored_bytes=offer.stored,
        uploaded_bytes=offer.uploaded_bytes,
        timing=attempt.timing(),
        components=tuple(ComponentSummary(c.name, c.kind, c.digest, c.size) for c in manifest.components),
        step=execution.step,
        open_operations=len(execution.open),
        uncertain_operations=execution.uncertain,
        completed=attempt.completed,
    )
