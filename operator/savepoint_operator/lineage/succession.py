"""Whether a pod may follow the holder of the newest epoch: the rules of take-over fed with what is known now.

It asks cluster and connections, and writes nothing.
"""

from collections.abc import Awaitable, Callable

from savepoint.contract.control_protocol import Wait
from savepoint.repository.format.commit import Head

from savepoint_operator.model.ports import Liveness, PodResolver
from savepoint_operator.model.views import AgentRef, Incarnation, NodeStanding, PodStanding, Refusal, Standing
from savepoint_operator.rules.takeover import Granted, Holder, Verdict, may_grant


class Succession:
    """Decides for one operator, by its own clock."""

    def __init__(self, directory: PodResolver, liveness: Liveness, monotonic: Callable[[], float]) -> None:
        self._directory, self._liveness, self._monotonic = directory, liveness, monotonic

    async def verdict(self, who: Incarnation, head: Head | None, *, left: Callable[[Head], Awaitable[bool]]) -> Verdict:
        """Whether the pod may have the next epoch, by what cluster and connections say now.

        ``left``: whether the predecessor left its last checkpoint for the operator. That is its release, too.
        """
        standing = await self._standing(who, head)
        verdict = self._decide(who, head, standing)
        if head is None or not isinstance(verdict, Wait) or not self._ended(head, standing):
            return verdict
        if await self._directory.released(who.agent, head.record.pod_uid) or await left(head):
            return Granted(standing.run_ended)
        return verdict

    def _ended(self, head: Head, standing: Standing) -> bool:
        """The predecessor says nothing, and the node that says so is there."""
        connected = self._liveness.contact(head.record.pod_uid).connected
        return not connected and standing.pod is not PodStanding.RUNNING and standing.node is NodeStanding.READY

    def _decide(self, who: Incarnation, head: Head | None, standing: Standing) -> Verdict:
        return may_grant(
            who.agent,
            None if head is None else holder_of(head),
            who.pod.uid,
            standing=standing,
            contact=self._liveness.contact(head.record.pod_uid if head else ""),
            leader_since=self._liveness.leader_since,
            now=self._monotonic(),
        )

    def speaking(self, who: Incarnation, head: Head | None) -> Wait | None:
        """Who waits for a pod that still speaks goes on waiting, and costs neither store nor API server a call."""
        if head is None or head.record.pod_uid == who.pod.uid:
            return None
        if not self._liveness.contact(head.record.pod_uid).connected:
            return None
        verdict = self._decide(who, head, Standing(PodStanding.RUNNING, NodeStanding.READY))
        return verdict if isinstance(verdict, Wait) else None

    async def _standing(self, who: Incarnation, head: Head | None) -> Standing:
        """The predecessor's, asked for only where it decides."""
        if head is None or head.record.pod_uid == who.pod.uid:
            return Standing(PodStanding.GONE, NodeStanding.READY)
        return await self._directory.standing(who.agent, head.record.pod_uid, head.record.node)


def holder_of(head: Head) -> Holder:
    """Who holds the newest epoch."""
    record = head.record
    return Holder(record.epoch, record.pod_uid, record.node, ended=record.kind in ("rollback", "completed"))


def fenced(who: Incarnation, head: Head | None) -> Refusal:
    """Why a pod that does not hold the newest epoch is refused."""
    if head is None:
        return Refusal(
            "Fenced", f"Agent {who.agent} has no epoch yet: its savepoint-restore container was granted none."
        )
    return Refusal(
        "Fenced",
        f"Epoch {head.record.epoch} of agent {who.agent} is held by another pod or a later start"
        f"{f' on node {head.record.node}' if head.record.node else ''}: this one commits nothing more; delete its pod.",
    )


def over(who: Incarnation, head: Head) -> Refusal:
    """Why a pod whose epoch takes no further checkpoint is refused."""
    return Refusal("Completed" if head.record.kind == "completed" else "RolledBack", over_message(who.agent, head))


def over_message(agent: AgentRef, head: Head) -> str:
    """What has ended the epoch, and what follows."""
    if head.record.kind == "completed":
        return f"The run of agent {agent} is completed: its next pod starts fresh, this one commits nothing more."
    return f"Agent {agent} was rolled back: its next pod restores what was chosen, this one commits nothing more."
