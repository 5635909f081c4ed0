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
from savepoint_operator.model.views import AgentKey, Contents
from savepoint_operator.reconcile.agent_record import Failure, Line
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import World
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.rules.status.conditions import parsed_time

log = logging.getLogger(__name__)

DEPTH: Final = 512
MANIFESTS_MOST: Final = 64
"""How many of the newest records are told with what they hold: retention keeps a few only."""
RETRY_SECONDS: Final = 15.0


class Chronicle:
    """The step of an agent's look that reads its chain, once per leader and again after each listing."""

    def __init__(self, world: World, stores: Stores, objects: CheckpointObjects, recorder: QueueingRecorder) -> None:
        self._world, self._stores, self._objects, self._recorder = world, stores, objects, recorder

    async def repair(self, line: Line, store_name: str, orders: Orders) -> float | None:
        """Tell the recorder what it has missed. Seconds until another try when the store could not be read."""
        if line.chain_read:
            return None
        item = self._world.agents.get(ObjectKey(*line.agent))
        if item is None or not store_name:
            line.chain_read = True  # nothing is known of it: its first grant tells
            return None
        try:
            store = await self._stores.open(store_name)
            head = await orders.head(line.agent, store_name)
            missed = await asyncio.to_thread(self._since, store, line.agent, head, item.pin[0] if item.pin else 0)
            begin: Head | None = None
            if item.pin is None:
                own = [each for each in missed if self._is_of(item, each)]
                begin = _beginning(head, [each for each in missed if each not in own])
                missed = own
            read = missed[-MANIFESTS_MOST:] + ([begin] if begin is not None else [])
            contents = await asyncio.to_thread(self._contents, store, line.agent, read)
        except IntegrityError as error:
            known = line.failure
            if known is None or not known.of_chain or known.reason != error.reason:
                line.failure = Failure(error.reason, str(error), self._recorder.now(), of_chain=True)
            log.error("agent %s: %s", line.agent, error)
            return RETRY_SECONDS * 4
        except SavepointError as error:
            log.info("agent %s: its chain cannot be read now: %s", line.agent, error)
            return RETRY_SECONDS
        if line.failure is not None and line.failure.of_chain:
            line.failure = None
        if begin is not None and line.latest is None:
            _begin_at(line, begin, contents.get(begin.record.sequence))
        for each in missed:
            await self._recorder.committed(line.agent, None, each, store_name, contents.get(each.record.sequence))
        if head is not None:
            line.learn(head)
            line.completed = head.record.kind == "completed"
        line.chain_read = True
        return None

    def _is_of(self, item: AgentObject, head: Head) -> bool:
        """Whether the record belongs to this life of the name: it is younger, or an object waits for its end."""
        record = head.record
        made = parsed_time(record.time)
        if made is not None and made >= item.meta.created:
            return True
        return record.attempt is not None and self._objects.find(item.agent, record.attempt) is not None

    def _since(self, store: OpenStore, agent: AgentKey, head: Head | None, pinned: int) -> list[Head]:
        """Checkpoints and ends above the pin, oldest first. Blocking."""
        if head is None or head.record.sequence <= pinned:
            return []
        chain = Chain(Prefixed(store.objects, f"{agent.namespace}/{agent.name}/"), *agent)
        depth = min(head.record.sequence - pinned, DEPTH)
        return [each for each in chain.back(head, depth) if each.record.kind in ("checkpoint", "completed")][::-1]

    def _contents(self, store: OpenStore, agent: AgentKey, heads: list[Head]) -> dict[int, Contents | None]:
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


def _begin_at(line: Line, begin: Head, contents: Contents | None) -> None:
    """It has no object, and is the new life's latest checkpoint all the same."""
    line.latest, line.recovery_point = begin, parsed_time(contents.cut if contents else begin.record.time)
    if contents is not None:
        line.stored_bytes, line.uncertain = contents.stored_bytes, contents.uncertain_operations
        line.latest_step = contents.step or ""
