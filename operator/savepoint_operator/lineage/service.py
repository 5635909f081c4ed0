"""Epochs and commits of every agent: one actor per agent around the blocking functions of ``savepoint.repository``.

It decides nothing about take-over (``rules``), holds no connection (``control``) and writes no object (the Recorder
does). Every operation runs to its end in a task of its own, so that neither a lost connection nor an impatient caller
tears one apart; the conditional write of the chain keeps it right even when another operator works on the same agent.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from savepoint.contract.control_protocol import CheckpointRef, Offer, Result, Wait
from savepoint.errors import IntegrityError, Superseded, Unavailable
from savepoint.repository.format.commit import Head

from savepoint_operator.lineage.actor import Actor, Actors
from savepoint_operator.lineage.epoch_lease import EpochLease
from savepoint_operator.lineage.open_repository import OpenRepository, default_name
from savepoint_operator.lineage.succession import Succession, fenced, holder_of, over, over_message
from savepoint_operator.model.ports import Liveness, PodResolver, Recorder, Stores
from savepoint_operator.model.views import AgentRef, CheckpointName, Incarnation, Refusal
from savepoint_operator.rules.takeover import Granted, Keep

log = logging.getLogger(__name__)

COLLECT_GRACE_SECONDS = 24 * 3600
RACES = 3
"""How often a commit looks again after another writer was faster."""


class LineageService:
    """All agents' chains. Methods raise the store's errors; StoreUnavailable and Unavailable may pass."""

    def __init__(
        self,
        stores: Stores,
        directory: PodResolver,
        recorder: Recorder,
        liveness: Liveness,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        answer_seconds: float = 20.0,
        name_seconds: float = 10.0,
    ) -> None:
        """``answer_seconds``: how long a caller waits for the store; ``name_seconds``: for the name of a checkpoint."""
        self._stores, self._directory, self._recorder, self._liveness = stores, directory, recorder, liveness
        self._now, self._random_bytes = now, random_bytes
        self._succession = Succession(directory, liveness, monotonic)
        self._name_seconds = name_seconds
        self._actors = Actors(answer_seconds)
        self._call = self._actors.call

    # -- what pods ask for ----------------------------------------------------------------------------------------

    async def grant(self, who: Incarnation, *, first: bool = True) -> EpochLease | Wait | Refusal:
        """The epoch for a pod that starts, or why it must wait. A deferred commit of its predecessor comes first.

        ``first``: also look whether the pod held an earlier epoch, which is needed once per ask.
        """

        async def work(actor: Actor) -> EpochLease | Wait | Refusal:
            speaks = None if first else self._succession.speaking(who, actor.head)
            if speaks is not None:
                return speaks
            opened = await self._open(actor, who.agent, who.store_name)
            head = await self._head(actor, opened)
            other = head is not None and head.record.pod_uid != who.pod.uid
            if first and other and await self._call(opened, opened.held_before, head, who.pod.uid):
                return fenced(who, head)
            verdict = await self._succession.verdict(
                who, head, left=lambda head: self._call(opened, opened.left_behind, head)
            )
            if isinstance(verdict, Wait):
                return verdict
            head = await self._adopt(actor, opened, head)
            if head is not None and isinstance(verdict, Granted) and verdict.run_ended:
                head = await self._end_run(actor, opened, head)
            kept = isinstance(verdict, Keep) and head is not None and not holder_of(head).ended
            if not kept:
                head = await self._call(opened, opened.grant, head, who.pod.uid, who.node, self._now())
                actor.head = head
            assert head is not None
            tenure = await self._tenure(opened, who, head)
            await self._recorder.granted(who, head, tenure.parent.name if tenure.parent else None)
            return tenure

        return await self._actors.run(who.agent, work)

    async def join(self, who: Incarnation, believed_epoch: int) -> EpochLease | Refusal:
        """The hold of a sidecar that connects; a Refusal without retry when its pod does not hold the newest epoch."""

        async def work(actor: Actor) -> EpochLease | Refusal:
            opened = await self._open(actor, who.agent, who.store_name)
            head = await self._head(actor, opened)
            if head is None or head.record.pod_uid != who.pod.uid:
                return fenced(who, head)
            if believed_epoch not in (0, head.record.epoch):
                return fenced(who, head)
            head = await self._adopt(actor, opened, head)
            assert head is not None
            if holder_of(head).ended:
                return over(who, head)
            self._liveness.returned(who.pod)
            return await self._tenure(opened, who, head)

        return await self._actors.run(who.agent, work)

    async def renewed(self, tenure: EpochLease) -> EpochLease:
        """The same hold over the store as it is now: its credentials or its address may have been changed since."""
        store = await self._stores.open(tenure.store.name)
        return tenure if store is tenure.store else replace(tenure, store=store)

    async def commit(self, tenure: EpochLease, offer: Offer) -> CheckpointRef:
        """Make the offered checkpoint exist, once; the answer to a repeated offer is read from the store.

        Superseded when the epoch is no longer the newest or takes no checkpoint any more.
        """

        async def work(actor: Actor) -> CheckpointRef:
            opened = await self._open(actor, tenure.agent, tenure.store.name)
            head = await self._head(actor, opened)
            found = await self._call(opened, opened.find_attempt, offer.attempt, head)
            if found is None:
                found = await self._commit_new(actor, opened, tenure, offer)
            await self._recorder.committed(tenure.agent, offer, found, opened.store.name)
            if offer.completed:
                await self._complete(actor, opened, tenure)
            return opened.reference(found)

        return await self._actors.run(tenure.agent, work)

    async def has_committed(self, tenure: EpochLease, attempt: str) -> bool:
        """Whether the attempt is among the newest records."""

        async def work(actor: Actor) -> bool:
            opened = await self._open(actor, tenure.agent, tenure.store.name)
            head = await self._head(actor, opened)
            return await self._call(opened, opened.find_attempt, attempt, head) is not None

        return await self._actors.run(tenure.agent, work)

    async def complete(self, tenure: EpochLease) -> None:
        """End the run: the next grant starts fresh. Idempotent."""

        async def work(actor: Actor) -> None:
            opened = await self._open(actor, tenure.agent, tenure.store.name)
            await self._head(actor, opened)
            await self._complete(actor, opened, tenure)

        await self._actors.run(tenure.agent, work)

    # -- what reconcile orders ------------------------------------------------------------------------------------

    async def head(self, agent: AgentRef, store: str) -> Head | None:
        """The newest record, read from the store."""

        async def work(actor: Actor) -> Head | None:
            return await self._head(actor, await self._open(actor, agent, store))

        return await self._actors.run(agent, work)

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> Head:
        """Let the lineage go on from an older checkpoint, or from nothing. Idempotent by attempt."""

        async def work(actor: Actor) -> Head:
            opened = await self._open(actor, agent, store)
            head = await self._head(actor, opened)
            if head is None:
                raise Unavailable(f"agent {agent} has no commit record yet: there is nothing to roll back")
            found = await self._call(opened, opened.find_attempt, attempt, head)
            if found is not None:
                return found
            head = await self._adopt(actor, opened, head)
            actor.head = await self._call(opened, opened.rollback, head, attempt, to_sequence, self._now())
            return actor.head

        return await self._actors.run(agent, work)

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> Head | None:
        """End the run of a pod that has exited with 0, if it holds the newest epoch; the newest record. Idempotent.

        What it left behind is committed first. Unavailable while its sidecar may still be heard: the last checkpoint
        comes before the end.
        """

        async def work(actor: Actor) -> Head | None:
            if self._liveness.contact(pod_uid).connected:
                raise Unavailable(f"the last words of the pod of agent {agent} are not all heard yet")
            opened = await self._open(actor, agent, store)
            head = await self._head(actor, opened)
            if head is None or head.record.pod_uid != pod_uid or holder_of(head).ended:
                return head
            adopted = await self._adopt(actor, opened, head)
            return await self._end_run(actor, opened, adopted or head)

        return await self._actors.run(agent, work)

    async def collect(self, agent: AgentRef, store: str, keep: frozenset[int]) -> int:
        """Remove what no kept record needs; bytes freed. Nothing is committed for the agent meanwhile."""

        async def work(actor: Actor) -> int:
            opened = await self._open(actor, agent, store)
            head = await self._head(actor, opened)
            if head is None:
                return 0
            return await self._call(opened, opened.collect, head, keep, COLLECT_GRACE_SECONDS, self._now())

        return await self._actors.run(agent, work, bounded=False)

    # -- ends -----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any operation is under way."""
        return self._actors.busy

    async def close(self) -> None:
        """Give up what is still under way."""
        await self._actors.close()

    # -- the actor ------------------------------------------------------------------------------------------------

    async def _open(self, actor: Actor, agent: AgentRef, store_name: str) -> OpenRepository:
        store = await self._stores.open(store_name)
        if actor.opened is None or actor.opened.store is not store:
            if actor.opened is not None and actor.opened.store.name != store.name:
                actor.head = None  # another store has a chain of its own
            fresh = OpenRepository(store, agent, self._random_bytes)
            await self._call(fresh, fresh.open, self._now())
            actor.opened = fresh
        return actor.opened

    async def _head(self, actor: Actor, opened: OpenRepository) -> Head | None:
        pin = await self._directory.pinned(opened.agent)
        actor.head = await self._call(opened, opened.head, actor.head, pin)
        return actor.head

    async def _adopt(self, actor: Actor, opened: OpenRepository, head: Head | None) -> Head | None:
        """Commit what the holder of the newest epoch left behind while no operator could be reached."""
        if head is None or holder_of(head).ended:
            return head
        for adoption in await self._call(opened, opened.adopt, head, self._now()):
            for adopted in adoption.heads:
                actor.head = head = adopted if adopted.record.sequence > head.record.sequence else head
                contents = await self._call(opened, opened.contents, adopted)
                await self._recorder.committed(opened.agent, None, adopted, opened.store.name, contents)
            if adoption.why:
                log.warning("agent %s: what its pod had left could not be committed: %s", opened.agent, adoption.why)
            if adoption.dropped:
                result = Result(adoption.dropped, "Failed", IntegrityError.reason, adoption.why)
                await self._recorder.failed(opened.agent, result)
        return head

    async def _tenure(self, opened: OpenRepository, who: Incarnation, head: Head) -> EpochLease:
        parent, pending = await self._call(opened, opened.outlook, head)
        return EpochLease(
            agent=who.agent,
            pod=who.pod,
            epoch=head.record.epoch,
            run=head.record.run,
            store=opened.store,
            key=opened.key,
            parent=parent,
            pending_key=pending,
        )

    async def _commit_new(self, actor: Actor, opened: OpenRepository, tenure: EpochLease, offer: Offer) -> Head:
        """The new record. A lost sequence is no lost epoch: another operator may be at work for the same pod."""
        for left in reversed(range(RACES)):
            head = self._held(actor, tenure)
            name = await self._name(tenure.agent, offer, head)
            holder = (tenure.epoch, tenure.pod.uid)
            try:
                actor.head = await self._call(opened, opened.commit, head, offer, holder, name, self._now())
                return actor.head
            except Superseded:
                await self._head(actor, opened)
                if not left:
                    raise
        raise AssertionError("the last race returns or raises")

    async def _complete(self, actor: Actor, opened: OpenRepository, tenure: EpochLease) -> None:
        head = actor.head
        if head is not None and head.record.kind == "completed" and head.record.epoch == tenure.epoch:
            return
        await self._end_run(actor, opened, self._held(actor, tenure))

    async def _end_run(self, actor: Actor, opened: OpenRepository, head: Head) -> Head:
        if holder_of(head).ended:
            return head
        actor.head = ended = await self._call(opened, opened.complete, head, self._now())
        await self._recorder.committed(opened.agent, None, ended, opened.store.name)
        return ended

    def _held(self, actor: Actor, tenure: EpochLease) -> Head:
        """The head, if the tenure still counts. Raises Superseded."""
        head = actor.head
        if head is None:
            raise Superseded(f"agent {tenure.agent} has no commit record: epoch {tenure.epoch} does not exist")
        if (head.record.epoch, head.record.pod_uid) != (tenure.epoch, tenure.pod.uid):
            raise Superseded(
                f"epoch {tenure.epoch} of agent {tenure.agent} is superseded: epoch {head.record.epoch} is held by "
                f"another pod on node {head.record.node or 'unknown'}; this pod commits nothing more"
            )
        if holder_of(head).ended:
            raise Superseded(over_message(tenure.agent, head))
        return head

    async def _name(self, agent: AgentRef, offer: Offer, head: Head) -> CheckpointName:
        """The name the cluster gave, or the next in line when the cluster cannot be asked in time."""
        try:
            async with asyncio.timeout(self._name_seconds):
                name = await self._recorder.name_for(agent, offer, head)
        except (TimeoutError, Unavailable):
            return default_name(agent, head)
        number = max(name.number, head.record.number + 1)  # an older attempt may be the later one to commit
        return CheckpointName(number, name.name)
