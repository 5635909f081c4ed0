"""Grants epochs and commits checkpoints of every agent: one actor per agent around ``savepoint.repository``.

It makes no take-over decision (``rules``), holds no connection (``control``) and writes no object (the Recorder does).
Every operation runs to its end in a task of its own, so that neither a lost connection nor an impatient caller leaves
it half done; the chain's conditional write keeps it correct even if another operator works on the same agent.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from savepoint.contract.control_protocol import CheckpointRef, Offer, Result, Wait
from savepoint.contract.vocabulary import CheckpointOutcome
from savepoint.errors import IntegrityError, Superseded, Unavailable
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.history.collect import CollectReport
from savepoint.repository.history.restore_point import checkpoint_ref

from savepoint_operator.lineage.actor import Actor, Actors
from savepoint_operator.lineage.dependencies import LineagePorts
from savepoint_operator.lineage.held_epoch import HeldEpoch
from savepoint_operator.lineage.open_repository import OpenRepository, default_name
from savepoint_operator.lineage.succession import Succession, ended_message, ended_refusal, fenced_refusal, holder_of
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.views import AgentRef, CheckpointName, Incarnation, Refusal
from savepoint_operator.rules.takeover import Granted, Keep

log = logging.getLogger(__name__)

COLLECT_GRACE_SECONDS = 24 * 3600
MAX_RACES = 3
"""Number of times that a commit is attempted when another writer is faster."""


class LineageService:
    """The chains of all agents. Methods raise the store's errors; StoreUnavailable and Unavailable are transient."""

    def __init__(
        self,
        ports: LineagePorts,
        clocks: Clocks,
        *,
        random_bytes: Callable[[int], bytes],
        answer_seconds: float = 20.0,
        name_seconds: float = 10.0,
    ) -> None:
        """Create the service.

        ``answer_seconds``: how long a caller waits for the store; ``name_seconds``: for the name of a checkpoint.
        """
        self._stores, self._pod_resolver = ports.stores, ports.pod_resolver
        self._recorder, self._liveness = ports.recorder, ports.liveness
        self._now, self._random_bytes = clocks.now, random_bytes
        self._succession = Succession(ports.pod_resolver, ports.liveness, clocks.monotonic)
        self._name_seconds = name_seconds
        self._actors = Actors(answer_seconds)
        self._call = self._actors.call

    # -- requests of pods -----------------------------------------------------------------------------------------

    async def grant(self, incarnation: Incarnation, *, first: bool = True) -> HeldEpoch | Wait | Refusal:
        """Return the epoch that a starting pod now holds, or why it waits.

        Its predecessor's pending checkpoints are committed first. ``first``: also check whether the pod
        held an earlier epoch, which is needed once per connection.
        """

        async def work(actor: Actor) -> HeldEpoch | Wait | Refusal:
            wait = None if first else self._succession.wait_while_connected(incarnation, actor.head)
            if wait is not None:
                return wait
            opened = await self._open(actor, incarnation.agent, incarnation.store_name)
            head = await self._head(actor, opened)
            other = head is not None and head.record.pod_uid != incarnation.pod.uid
            if first and other and await self._call(opened, opened.held_before, head, incarnation.pod.uid):
                return fenced_refusal(incarnation, head)
            decision = await self._succession.decide(
                incarnation, head, has_pending=lambda head: self._call(opened, opened.has_pending, head)
            )
            if isinstance(decision, Wait):
                return decision
            head = await self._commit_pending(actor, opened, head)
            if head is not None and isinstance(decision, Granted) and decision.run_ended:
                head = await self._end_run(actor, opened, head)
            kept = isinstance(decision, Keep) and head is not None and not holder_of(head).ended
            if not kept:
                head = await self._call(opened, opened.grant, head, incarnation.pod.uid, incarnation.node, self._now())
                actor.head = head
            assert head is not None
            held_epoch = await self._held_epoch_of(opened, incarnation, head)
            await self._recorder.granted(incarnation, head, held_epoch.parent.name if held_epoch.parent else None)
            return held_epoch

        return await self._actors.run(incarnation.agent, work)

    async def join(self, incarnation: Incarnation, believed_epoch: int) -> HeldEpoch | Refusal:
        """Return the epoch that a connecting sidecar holds; a final Refusal if it is not the newest epoch."""

        async def work(actor: Actor) -> HeldEpoch | Refusal:
            opened = await self._open(actor, incarnation.agent, incarnation.store_name)
            head = await self._head(actor, opened)
            if head is None or head.record.pod_uid != incarnation.pod.uid:
                return fenced_refusal(incarnation, head)
            if believed_epoch not in (0, head.record.epoch):
                return fenced_refusal(incarnation, head)
            head = await self._commit_pending(actor, opened, head)
            assert head is not None
            if holder_of(head).ended:
                return ended_refusal(incarnation, head)
            self._liveness.reactivated(incarnation.pod)
            return await self._held_epoch_of(opened, incarnation, head)

        return await self._actors.run(incarnation.agent, work)

    async def renewed(self, held_epoch: HeldEpoch) -> HeldEpoch:
        """Return the held epoch with the store as it is now: its credentials or address may have changed since."""
        store = await self._stores.open(held_epoch.store.name)
        return held_epoch if store is held_epoch.store else replace(held_epoch, store=store)

    async def commit(self, held_epoch: HeldEpoch, offer: Offer) -> CheckpointRef:
        """Commit the offered checkpoint, once; the answer to a repeated offer is read from the store.

        Raises Superseded if the epoch is not the newest or accepts no further checkpoint.
        """

        async def work(actor: Actor) -> CheckpointRef:
            opened = await self._open(actor, held_epoch.agent, held_epoch.store.name)
            head = await self._head(actor, opened)
            found = await self._call(opened, opened.find_attempt, offer.attempt, head)
            if found is None:
                found = await self._commit_new(actor, opened, held_epoch, offer)
            await self._recorder.committed(held_epoch.agent, offer, found, opened.store.name)
            if offer.completed:
                await self._complete(actor, opened, held_epoch)
            return checkpoint_ref(found)

        return await self._actors.run(held_epoch.agent, work)

    async def has_committed(self, held_epoch: HeldEpoch, attempt: str) -> bool:
        """Return whether the attempt is among the newest records."""

        async def work(actor: Actor) -> bool:
            opened = await self._open(actor, held_epoch.agent, held_epoch.store.name)
            head = await self._head(actor, opened)
            return await self._call(opened, opened.find_attempt, attempt, head) is not None

        return await self._actors.run(held_epoch.agent, work)

    async def complete(self, held_epoch: HeldEpoch) -> None:
        """End the run: the next grant starts fresh. Idempotent."""

        async def work(actor: Actor) -> None:
            opened = await self._open(actor, held_epoch.agent, held_epoch.store.name)
            await self._head(actor, opened)
            await self._complete(actor, opened, held_epoch)

        await self._actors.run(held_epoch.agent, work)

    # -- orders of reconcile --------------------------------------------------------------------------------------

    async def head(self, agent: AgentRef, store: str) -> ChainRecord | None:
        """Return the newest record, read from the store."""

        async def work(actor: Actor) -> ChainRecord | None:
            return await self._head(actor, await self._open(actor, agent, store))

        return await self._actors.run(agent, work)

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> ChainRecord:
        """Append a record that points back to an older checkpoint, or to none (a reset). Idempotent by attempt."""

        async def work(actor: Actor) -> ChainRecord:
            opened = await self._open(actor, agent, store)
            head = await self._head(actor, opened)
            if head is None:
                raise Unavailable(f"agent {agent} has no commit record yet: there is nothing to roll back")
            found = await self._call(opened, opened.find_attempt, attempt, head)
            if found is not None:
                return found
            head = await self._commit_pending(actor, opened, head)
            actor.head = await self._call(opened, opened.rollback, head, attempt, to_sequence, self._now())
            return actor.head

        return await self._actors.run(agent, work)

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> ChainRecord | None:
        """End the run of a pod that exited with 0, if it holds the newest epoch; return the newest record. Idempotent.

        Its pending checkpoints are committed first. Raises Unavailable while its sidecar is connected, since the final
        checkpoint must precede the end of the run.
        """

        async def work(actor: Actor) -> ChainRecord | None:
            if self._liveness.contact(pod_uid).connected:
                raise Unavailable(f"the pod of agent {agent} is still connected; its run is ended afterwards")
            opened = await self._open(actor, agent, store)
            head = await self._head(actor, opened)
            if head is None or head.record.pod_uid != pod_uid or holder_of(head).ended:
                return head
            newest = await self._commit_pending(actor, opened, head)
            return await self._end_run(actor, opened, newest or head)

        return await self._actors.run(agent, work)

    async def collect(self, agent: AgentRef, store: str, keep: frozenset[int]) -> CollectReport:
        """Delete objects that no kept record needs, and report what was removed and what is lost.

        The agent's commits wait meanwhile.
        """

        async def work(actor: Actor) -> CollectReport:
            opened = await self._open(actor, agent, store)
            head = await self._head(actor, opened)
            if head is None:
                return CollectReport()
            return await self._call(opened, opened.collect, head, keep, COLLECT_GRACE_SECONDS, self._now())

        return await self._actors.run(agent, work, bounded=False)

    # -- shutdown -------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """True while any operation is in progress."""
        return self._actors.busy

    async def close(self) -> None:
        """Cancel operations in progress."""
        await self._actors.close()

    # -- steps of an operation ------------------------------------------------------------------------------------

    async def _open(self, actor: Actor, agent: AgentRef, store_name: str) -> OpenRepository:
        store = await self._stores.open(store_name)
        if actor.opened is None or actor.opened.store is not store:
            if actor.opened is not None and actor.opened.store.name != store.name:
                actor.head = None  # another store has its own chain
            fresh = OpenRepository(store, agent, self._random_bytes)
            await self._call(fresh, fresh.open, self._now())
            actor.opened = fresh
        return actor.opened

    async def _head(self, actor: Actor, opened: OpenRepository) -> ChainRecord | None:
        pin = await self._pod_resolver.pinned(opened.agent)
        actor.head = await self._call(opened, opened.head, actor.head, pin)
        return actor.head

    async def _commit_pending(
        self, actor: Actor, opened: OpenRepository, head: ChainRecord | None
    ) -> ChainRecord | None:
        """Commit the pending checkpoints that the holder of the newest epoch left while no operator was reachable."""
        if head is None or holder_of(head).ended:
            return head
        for commit in await self._call(opened, opened.commit_pending, head, self._now()):
            for committed in commit.records:
                actor.head = head = committed if committed.record.sequence > head.record.sequence else head
                contents = await self._call(opened, opened.contents, committed)
                await self._recorder.committed(opened.agent, None, committed, opened.store.name, contents)
            if commit.problem:
                log.warning("agent %s: cannot commit a pending checkpoint: %s", opened.agent, commit.problem)
            if commit.dropped_attempt:
                result = Result(commit.dropped_attempt, CheckpointOutcome.FAILED, IntegrityError.reason, commit.problem)
                await self._recorder.failed(opened.agent, result)
        return head

    async def _held_epoch_of(self, opened: OpenRepository, incarnation: Incarnation, head: ChainRecord) -> HeldEpoch:
        parent, pending = await self._call(opened, opened.parent_and_pending_key, head)
        return HeldEpoch(
            agent=incarnation.agent,
            pod=incarnation.pod,
            epoch=head.record.epoch,
            run=head.record.run,
            store=opened.store,
            key=opened.key,
            parent=parent,
            pending_key=pending,
        )

    async def _commit_new(
        self, actor: Actor, opened: OpenRepository, held_epoch: HeldEpoch, offer: Offer
    ) -> ChainRecord:
        """Append the record. A lost sequence is not a lost epoch: another operator may serve the same pod."""
        for left in reversed(range(MAX_RACES)):
            head = self._require_newest(actor, held_epoch)
            name = await self._name(held_epoch.agent, offer, head)
            holder = (held_epoch.epoch, held_epoch.pod.uid)
            try:
                actor.head = await self._call(opened, opened.commit, head, offer, holder, name, self._now())
                return actor.head
            except Superseded:
                await self._head(actor, opened)
                if not left:
                    raise
        raise AssertionError("the last race returns or raises")

    async def _complete(self, actor: Actor, opened: OpenRepository, held_epoch: HeldEpoch) -> None:
        head = actor.head
        if head is not None and head.record.kind == "completed" and head.record.epoch == held_epoch.epoch:
            return
        await self._end_run(actor, opened, self._require_newest(actor, held_epoch))

    async def _end_run(self, actor: Actor, opened: OpenRepository, head: ChainRecord) -> ChainRecord:
        if holder_of(head).ended:
            return head
        actor.head = ended = await self._call(opened, opened.complete, head, self._now())
        await self._recorder.committed(opened.agent, None, ended, opened.store.name)
        return ended

    def _require_newest(self, actor: Actor, held_epoch: HeldEpoch) -> ChainRecord:
        """Return the head if the held epoch is still the newest one. Raises Superseded."""
        head = actor.head
        if head is None:
            raise Superseded(f"agent {held_epoch.agent} has no commit record: epoch {held_epoch.epoch} does not exist")
        if (head.record.epoch, head.record.pod_uid) != (held_epoch.epoch, held_epoch.pod.uid):
            raise Superseded(
                f"epoch {held_epoch.epoch} of agent {held_epoch.agent} is superseded: epoch {head.record.epoch} is "
                f"held by another pod on node {head.record.node or 'unknown'}; this pod may commit nothing more"
            )
        if holder_of(head).ended:
            raise Superseded(ended_message(held_epoch.agent, head))
        return head

    async def _name(self, agent: AgentRef, offer: Offer, head: ChainRecord) -> CheckpointName:
        """Return the name that the recorder gives, or the next number if it does not answer in time."""
        try:
            async with asyncio.timeout(self._name_seconds):
                name = await self._recorder.name_for(agent, offer, head)
        except (TimeoutError, Unavailable):
            return default_name(agent, head)
        number = max(name.number, head.record.number + 1)  # an older attempt may commit later than a newer one
        return CheckpointName(number, name.name)
