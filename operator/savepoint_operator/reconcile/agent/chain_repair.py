"""Repairing objects from the chain: what was committed while nobody could write status becomes visible.

The pin in ProtectedAgent is written after the objects, so everything up to it is reflected: only newer records
are read. A ProtectedAgent without a pin is new: records older than it were reflected in an earlier life of its name, as
before its namespace was deleted, and their objects do not come back.
"""

import asyncio
import logging
from typing import Final

from savepoint.errors import IntegrityError, SavepointError
from savepoint.repository.format.commit import Head
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

DEPTH: Final = 512
MANIFESTS_MOST: Final = 64
"""How many of the newest records are told with what they hold: retention keeps a few only."""
RETRY_SECONDS: Final = 15.0


class ChainRepair:
    """The step of an agent's look that reads its chain, once per leader and again after each listing."""

    def __init__(
        self, cache: ClusterCache, stores: Stores, objects: CheckpointObjects, recorder: QueueingRecorder
    ) -> None:
        self._cache, self._stores, self._objects, self._recorder = cache, stores, objects, recorder

    async def repair(self, agent_record: AgentRecord, store_name: str, orders: Orders) -> float | None:
        """Tell the recorder what it has missed. Seconds until another try when the store could not be read."""
        if agent_record.chain_read:
            return None
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if item is None or not store_name:
            agent_record.chain_read = True  # nothing is known of it: its first grant tells
            return None
        try:
            store = await self._stores.open(store_name)
            head = await orders.head(agent_record.agent, store_name)
            missed = await asyncio.to_thread(
                self._since, store, agent_record.agent, head, item.pin[0] if item.pin else 0
            )
            begin: Head | None = None
            if item.pin is None:
                own = [each for each in missed if self._is_of(item, each)]
                begin = _beginning(head, [each for each in missed if each not in own])
                missed = own
            read = missed[-MANIFESTS_MOST:] + ([begin] if begin is not None else [])
            contents = await asyncio.to_thread(self._contents, store, agent_record.agent, read)
        except IntegrityError as error:
            known = agent_record.failure
            if known is None or not known.of_chain or known.reason != error.reason:
                agent_record.failure = LastFailure(error.reason, str(error), self._recorder.now(), of_chain=True)
            log.error("agent %s: %s", agent_record.agent, error)
            return RETRY_SECONDS * 4
        except SavepointError as error:
            log.info("agent %s: its chain cannot be read now: %s", agent_record.agent, error)
            return RETRY_SECONDS
        if agent_record.failure is not None and agent_record.failure.of_chain:
            agent_record.failure = None
        if begin is not None and agent_record.latest is None:
            _begin_at(agent_record, begin, contents.get(begin.record.sequence))
        for each in missed:
            await self._recorder.committed(
                agent_record.agent, None, each, store_name, contents.get(each.record.sequence)
            )
        if head is not None:
            agent_record.learn(head)
            agent_record.completed = head.record.kind == "completed"
        agent_record.chain_read = True
        return None

    def _is_of(self, item: AgentObject, head: Head) -> bool:
        """Whether the record belongs to this life of the name: it is younger, or an object waits for its end."""
        record = head.record
        made = parsed_time(record.time)
        if made is not None and made >= item.meta.created:
            return True
        return record.attempt is not None and self._objects.find(item.agent, record.attempt) is not None

    def _since(self, store: OpenStore, agent: AgentRef, head: Head | None, pinned: int) -> list[Head]:
        """Checkpoints and ends above the pin, oldest first. Blocking."""
        if head is None or head.record.sequence <= pinned:
            return []
        chain = Chain(Prefixed(store.objects, f"{agent.namespace}/{agent.name}/"), *agent)
        depth = min(head.record.sequence - pinned, DEPTH)
        return [each for each in chain.back(head, depth) if each.record.kind in ("checkpoint", "completed")][::-1]

    def _contents(self, store: OpenStore, agent: AgentRef, heads: list[Head]) -> dict[int, Contents | None]:
        """What they hold, by sequence. Blocking."""
        if not heads:
            return {}
        repository = Repository.open_or_create(store.objects, *agent, store.master, now=self._recorder.now())
        return {each.record.sequence: contents_of(repository, each) for each in heads}


def _beginning(head: Head | None, records: list[Head]) -> Head | None:
    """The checkpoint of an earlier life of the name that a restart now would restore."""
    target = head.record.manifest if head is not None else None
    made = (each for each in reversed(records) if target is not None and each.record.manifest == target)
    return next((each for each in made if each.record.kind == "checkpoint"), None)


def _begin_at(agent_record: AgentRecord, begin: Head, contents: Contents | None) -> None:
    """It has no object, and is the new life's latest checkpoint all the same."""
    agent_record.latest, agent_record.recovery_point = (
        begin,
        parsed_time(contents.cut if contents else begin.record.time),
    )
    if contents is not None:
        agent_record.stored_bytes, agent_record.uncertain = contents.stored_bytes, contents.uncertain_operations
        agent_record.latest_step = contents.step or ""
