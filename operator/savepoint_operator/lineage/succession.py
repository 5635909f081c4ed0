"""Decides whether a pod may succeed the holder of the newest epoch: the take-over rules, applied to what is known now.

It reads the cluster and the liveness of pods, and writes nothing.
"""

from collections.abc import Awaitable, Callable

from savepoint.contract.control_protocol import Wait
from savepoint.contract.vocabulary import Reason
from savepoint.repository.format.commit import ChainRecord

from savepoint_operator.model.ports import Liveness, PodResolver
from savepoint_operator.model.views import AgentRef, Incarnation, NodeState, PodState, PredecessorState, Refusal
from savepoint_operator.rules.takeover import Decision, Granted, Holder, may_grant


class Succession:
    """Decides for one operator, by its own clock."""

    def __init__(self, pod_resolver: PodResolver, liveness: Liveness, monotonic: Callable[[], float]) -> None:
        self._pod_resolver, self._liveness, self._monotonic = pod_resolver, liveness, monotonic

    async def decide(
        self,
        incarnation: Incarnation,
        head: ChainRecord | None,
        *,
        has_pending: Callable[[ChainRecord], Awaitable[bool]],
    ) -> Decision:
        """Decide whether the pod may have the next epoch, from what the cluster and the connections show now.

        ``has_pending`` returns whether the predecessor left its final checkpoint as a pending object, which releases
        its epoch as well.
        """
        predecessor = await self._predecessor_state(incarnation, head)
        decision = self._decide(incarnation, head, predecessor)
        if head is None or not isinstance(decision, Wait) or not self._surely_ended(head, predecessor):
            return decision
        if await self._pod_resolver.released(incarnation.agent, head.record.pod_uid) or await has_pending(head):
            return Granted(predecessor.run_ended)
        return decision

    def wait_while_connected(self, incarnation: Incarnation, head: ChainRecord | None) -> Wait | None:
        """Return the wait for a predecessor that is still connected; costs no call to the store or the API server."""
        if head is None or head.record.pod_uid == incarnation.pod.uid:
            return None
        if not self._liveness.contact(head.record.pod_uid).connected:
            return None
        decision = self._decide(incarnation, head, PredecessorState(PodState.RUNNING, NodeState.READY))
        return decision if isinstance(decision, Wait) else None

    def _decide(self, incarnation: Incarnation, head: ChainRecord | None, predecessor: PredecessorState) -> Decision:
        return may_grant(
            incarnation.agent,
            None if head is None else holder_of(head),
            incarnation.pod.uid,
            predecessor=predecessor,
            contact=self._liveness.contact(head.record.pod_uid if head else ""),
            leader_since=self._liveness.leader_since,
            now=self._monotonic(),
        )

    def _surely_ended(self, head: ChainRecord, predecessor: PredecessorState) -> bool:
        """Return whether the predecessor is disconnected and a node that is ready reports that its pod has ended."""
        connected = self._liveness.contact(head.record.pod_uid).connected
        return not connected and predecessor.pod is not PodState.RUNNING and predecessor.node is NodeState.READY

    async def _predecessor_state(self, incarnation: Incarnation, head: ChainRecord | None) -> PredecessorState:
        """Return the predecessor's state, read from the cluster only if the decision depends on it."""
        if head is None or head.record.pod_uid == incarnation.pod.uid:
            return PredecessorState(PodState.GONE, NodeState.READY)
        return await self._pod_resolver.predecessor_state(incarnation.agent, head.record.pod_uid, head.record.node)


def holder_of(head: ChainRecord) -> Holder:
    """Return the holder of the newest epoch."""
    record = head.record
    return Holder(record.epoch, record.pod_uid, record.node, ended=record.kind in ("rollback", "completed"))


def fenced_refusal(incarnation: Incarnation, head: ChainRecord | None) -> Refusal:
    """Return the refusal of a pod that does not hold the newest epoch."""
    agent = incarnation.agent
    if head is None:
        return Refusal(
            Reason.FENCED, f"Agent {agent} has no epoch yet: its savepoint-restore container was not granted one."
        )
    node = f" on node {head.record.node}" if head.record.node else ""
    return Refusal(
        Reason.FENCED,
        f"Epoch {head.record.epoch} of agent {agent} is held by another pod or a later start{node}. This pod may "
        "commit nothing more; delete it.",
    )


def ended_refusal(incarnation: Incarnation, head: ChainRecord) -> Refusal:
    """Return the refusal of a pod whose epoch accepts no further checkpoint."""
    reason = Reason.COMPLETED if head.record.kind == "completed" else Reason.ROLLED_BACK
    return Refusal(reason, ended_message(incarnation.agent, head))


def ended_message(agent: AgentRef, head: ChainRecord) -> str:
    """Return what has ended the epoch, and what follows."""
    if head.record.kind == "completed":
        return f"The run of agent {agent} has ended. Its next pod starts fresh; this one may commit nothing more."
    return (
        f"Agent {agent} was rolled back or reset. Its next pod starts from the chosen state; this one may commit "
        "nothing more."
    )
