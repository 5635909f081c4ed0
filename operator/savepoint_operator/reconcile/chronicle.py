"""Repairing objects from the chain: what was committed while nobody could write status becomes visible.

The pin in ProtectedAgent is written after the objects, so everything up to it is reflected: only newer records
are read.
"""

import asyncio
import logging
from typing import Final

from savepoint.errors import IntegrityError, SavepointError
from savepoint.repository.chain import Chain
from savepoint.repository.commit import Head
from savepoint.storage.wrapper import Prefixed

from savepoint_operator.model.objects import ObjectKey
from savepoint_operator.model.ports import OpenStore, Orders, Stores
from savepoint_operator.model.views import AgentKey
from savepoint_operator.reconcile.line import Failure, Line
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.reconcile.world import World

log = logging.getLogger(__name__)

DEPTH: Final = 512
RETRY_SECONDS: Final = 15.0


class Chronicle:
    """The step of an agent's look that reads its chain, once per leader and again after each listing."""

    def __init__(self, world: World, stores: Stores, recorder: QueueingRecorder) -> None:
        self._world, self._stores, self._recorder = world, stores, recorder

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
            missed = await asyncio.to_thread(_since, store, line.agent, head, item.pin[0] if item.pin else 0)
        except IntegrityError as error:
            line.failure = line.failure or Failure(error.reason, str(error), self._recorder.now())
            log.error("agent %s: %s", line.agent, error)
            return RETRY_SECONDS * 4
        except SavepointError as error:
            log.info("agent %s: its chain cannot be read now: %s", line.agent, error)
            return RETRY_SECONDS
        for each in missed:
            if each.record.kind in ("checkpoint", "completed"):
                await self._recorder.committed(line.agent, None, each, store_name)
        if head is not None:
            line.learn(head)
            line.completed = head.record.kind == "completed"
        line.chain_read = True
        return None


def _since(store: OpenStore, agent: AgentKey, head: Head | None, pinned: int) -> list[Head]:
    """Records above the pin, oldest first."""
    if head is None or head.record.sequence <= pinned:
        return []
    chain = Chain(Prefixed(store.objects, f"{agent.namespace}/{agent.name}/"), *agent)
    depth = min(head.record.sequence - pinned, DEPTH)
    return list(chain.back(head, depth))[::-1]
