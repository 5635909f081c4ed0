"""The step that ends a run whose pod exited with 0. What counts as such an exit is decided by ``rules.completion``.

It is not needed for ``finish()``, which the sidecar reports itself. A successor that asks for its epoch before this
step has run is not delayed: the grant checks the pod too.
"""

import logging
from typing import Final

from savepoint.errors import SavepointError

from savepoint_operator.model.ports import Orders
from savepoint_operator.reconcile.agent_record import AgentRecord

log = logging.getLogger(__name__)

ENDED_PODS_KEPT: Final = 64
"""Limit on remembered pods: while the chain cannot be read, it is unknown which of them holds the newest epoch."""
RETRY_SECONDS: Final = 2.0
"""Seconds until the next try: the sidecar's last messages may still be in transit."""


async def end_run(agent_record: AgentRecord, store: str, orders: Orders) -> float | None:
    """Order the run's end if the pod that holds the newest epoch has exited with 0.

    Return the seconds until the next try, or None if there is nothing to retry.
    """
    while len(agent_record.ended_pods) > ENDED_PODS_KEPT:
        agent_record.ended_pods.pop()
    if not agent_record.chain_read or agent_record.head is None or not store:
        return None
    record = agent_record.head.record
    agent_record.ended_pods &= {record.pod_uid}
    if not agent_record.ended_pods or record.kind in ("completed", "rollback"):
        return None
    try:
        head = await orders.end_run(agent_record.agent, record.pod_uid, store)
    except SavepointError as error:
        log.info(
            "agent %s: cannot record the end of its run: %s: %s; retrying in %.0f s",
            agent_record.agent,
            error.reason,
            error,
            RETRY_SECONDS,
        )
        return RETRY_SECONDS
    if head is not None:
        agent_record.advance_head(head)
    return None
