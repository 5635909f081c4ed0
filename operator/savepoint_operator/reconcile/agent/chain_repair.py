"""The step that repairs objects from the chain: commits that could not be written to status become visible.

The pin in ProtectedAgent is written after all other objects, so every record up to the pin already has its objects, and
only newer records are read. A ProtectedAgent without a pin is new. Records that are older than it belong to an earlier
agent of the same name, for instance before its namespace was deleted; their objects are not created again.
"""

import asyncio
import logging
from typing import Final

from savepoint.errors import IntegrityError, SavepointError
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import Repository
from savepoint.storage.wrapper import Prefixed

from savepoint_operator.lineage.contents import contents_of
from savepoint_operator.model.objects import AgentObject, ObjectKey
from savepoint_operator.model.ports import OpenStore, Orders, Stores
from savepoint_operator.model.views import AgentRef, Contents
from savepoint_operator.reconcile.agent_record import AgentRecord, LastFailure
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.rules.status.conditions import parsed_time

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 512
MAX_MANIFESTS: Final = 64
"""For how many of the newest records the manifest is read too: retention keeps only a few."""
RETRY_SECONDS: Final = 15.0


class ChainRepair:
    """Reads an agent's chain once per leader, and again after each listing."""

    def __init__(
        self, cache: ClusterCache, stores: Stores, objects: CheckpointObjects, recorder: QueueingRecorder
    ) -> None:
        self._cache, self._stores, self._objects, self._recorder = cache, stores, objects, recorder

    async def repair(self, agent_record: AgentRecord, store_name: str, orders: Orders) -> float | None:
        """Report to the recorder what it missed. Return the seconds until the next try if the store cannot be read."""
        if agent_record.chain_read:
            return None
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if item is None or not store_name:
            agent_record.chain_read = True  # nothing was written for this agent; its first grant will be recorded
            return None
        try:
            store = await self._stores.open(store_name)
            head = await orders.head(agent_record.agent, store_name)
            missed = await asyncio.to_thread(
                self._records_above, store, agent_record.agent, head, item.pin[0] if item.pin else 0
            )
            inherited: ChainRecord | None = None
            if item.pin is None:
                own = [each for each in missed if self._belongs_to(item, each)]
                inherited = _restorable(head, [each for each in missed if each not in own])
                missed = own
            read = missed[-MAX_MANIFESTS:] + ([inherited] if inherited is not None else [])
            contents = await asyncio.to_thread(self._contents, store, agent_record.agent, read)
        except IntegrityError as error:
            known = agent_record.failure
            if known is None or not known.of_chain or known.reason != error.reason:
                agent_record.failure = LastFailure(error.reason, str(error), self._recorder.now(), of_chain=True)
            log.error("agent %s: its chain is damaged: %s", agent_record.agent, error)
            return RETRY_SECONDS * 4
        except SavepointError as error:
            log.info(
                "agent %s: cannot read its chain: %s; retrying in %.0f s", agent_record.agent, error, RETRY_SECONDS
            )
            return RETRY_SECONDS
        if agent_record.failure is not None and agent_record.failure.of_chain:
            agent_record.failure = None
        if inherited is not None and agent_record.latest is None:
            _inherit(agent_record, inherited, contents.get(inherited.record.sequence))
        for each in missed:
            await self._recorder.committed(
                agent_record.agent, None, each, store_name, contents.get(each.record.sequence)
            )
        if head is not None:
            agent_record.advance_head(head)
            agent_record.completed = head.record.kind == "completed"
        agent_record.chain_read = True
        return None

    def _belongs_to(self, item: AgentObject, head: ChainRecord) -> bool:
        """Return whether the record is of this ProtectedAgent and not of an earlier one of the same name: it is newer
        than the object, or an AgentCheckpoint waits for its attempt."""
        record = head.record
        time = parsed_time(record.time)
        if time is not None and time >= item.meta.created:
            return True
        return record.attempt is not None and self._objects.find(item.agent, record.attempt) is not None

    def _records_above(
        self, store: OpenStore, agent: AgentRef, head: ChainRecord | None, pinned: int
    ) -> list[ChainRecord]:
        """Return the checkpoint and completed records above the pin, oldest first. Blocks."""
        if head is None or head.record.sequence <= pinned:
            return []
        chain = Chain(Prefixed(store.objects, f"{agent.namespace}/{agent.name}/"), *agent)
        depth = min(head.record.sequence - pinned, MAX_RECORDS)
        return [each for each in chain.back(head, depth) if each.record.kind in ("checkpoint", "completed")][::-1]

    def _contents(self, store: OpenStore, agent: AgentRef, heads: list[ChainRecord]) -> dict[int, Contents | None]:
        """Return the checkpoints' contents by sequence. Blocks."""
        if not heads:
            return {}
        repository = Repository.open_or_create(store.objects, *agent, store.master, now=self._recorder.now())
        return {each.record.sequence: contents_of(repository, each) for each in heads}


def _restorable(head: ChainRecord | None, records: list[ChainRecord]) -> ChainRecord | None:
    """Return the checkpoint among the records that a restart would restore now."""
    target = head.record.manifest if head is not None else None
    matching = (each for each in reversed(records) if target is not None and each.record.manifest == target)
    return next((each for each in matching if each.record.kind == "checkpoint"), None)


def _inherit(agent_record: AgentRecord, checkpoint: ChainRecord, contents: Contents | None) -> None:
    """Make a checkpoint of an earlier agent of this name the latest one, although it has no object."""
    agent_record.latest = checkpoint
    agent_record.recovery_point = parsed_time(contents.taken_at if contents else checkpoint.record.time)
    if contents is not None:
        agent_record.stored_bytes = contents.stored_bytes
        agent_record.uncertain_operations = contents.uncertain_operations
        agent_record.latest_step = contents.step or ""
