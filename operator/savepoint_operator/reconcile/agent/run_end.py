"""The end of a run by its pod's exit with 0: a step of an agent's look. What counts as one is ``rules.completion``'s.

``finish()`` needs none of it: the sidecar says so itself. A successor that asks before this step has come to it is no
later for that: the grant looks, too.
"""

import logging
from typing import Final

from savepoint.errors import SavepointError

from savepoint_operator.model.ports import Orders
from savepoint_operator.reconcile.agent_record import AgentRecord

log = logging.getLogger(__name__)

ENDED_KEPT: Final = 64
"""While the chain cannot be read it is not known which of them counts; the grant looks at the pod itself, too."""
AGAIN_SECONDS: Final = 2.0
"""Its sidecar's last words may still be under way."""


async def end_run(agent_record: AgentRecord, store: str, orders: Orders) -> float | None:
    """Have the end recorded if the pod that holds the newest epoch has exited. Seconds until another try."""
    while len(agent_record.ended_pods) > ENDED_KEPT:
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
        log.info("agent %s: the end of its run is not recorded yet: %s: %s", agent_record.agent, error.reason, error)
        return AGAIN_SECONDS
    if head is not None:
        agent_record.learn(head)
    return None
