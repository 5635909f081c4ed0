"""Rules that decide when a pod may be granted the next epoch. Pure: time is an argument.

It does not append the grant (``lineage``), and it is not what makes two writers impossible: the chain's conditional
write does that. It ensures that a successor does not start while its predecessor may still be running.
"""

from dataclasses import dataclass

from savepoint.contract.control_protocol import Wait
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.views import AgentRef, Contact, NodeState, PodState, PredecessorState

RECONNECT_SECONDS = 15.0
"""Seconds for which the connection of a pod that has ended must have been closed."""
TAKEOVER_SECONDS = 45.0
"""Seconds for which a pod on a lost node must have been silent."""


@dataclass(frozen=True)
class Holder:
    """The pod that holds the newest epoch, according to the chain's head."""

    epoch: int
    pod_uid: str
    node: str
    ended: bool
    """The epoch accepts no further checkpoint: the run is completed, or the agent was rolled back."""


@dataclass(frozen=True)
class Keep:
    """The requesting pod already holds the newest epoch."""


@dataclass(frozen=True)
class Granted:
    """The next epoch may be granted."""

    run_ended: bool = False
    """The holder's pod has ended its run: record that first; the next epoch starts fresh."""


Decision = Keep | Granted | Wait


def may_grant(  # noqa: PLR0911 - one return per rule
    agent: AgentRef,
    holder: Holder | None,
    pod_uid: str,
    *,
    predecessor: PredecessorState,
    contact: Contact,
    leader_since: float,
    now: float,
) -> Decision:
    """Decide for the pod with ``pod_uid``.

    ``predecessor`` and ``contact`` describe the holder's pod; times are monotonic seconds.
    """
    if holder is None:
        return Granted()
    if holder.pod_uid == pod_uid:
        return Granted() if holder.ended else Keep()
    granted = Granted(predecessor.run_ended)
    if contact.released:
        return granted
    silent = (
        0.0
        if contact.connected
        else now - max(leader_since, leader_since if contact.closed_at is None else contact.closed_at)
    )
    holding = _described(agent, holder, contact)
    if predecessor.node is NodeState.LOST:
        if silent >= TAKEOVER_SECONDS:
            return granted
        return Wait(
            Reason.PREDECESSOR_RUNNING,
            f"{holding}. That node is lost, but the pod may still be running. This pod gets the epoch once the other "
            f"has been silent for {TAKEOVER_SECONDS:.0f} s, or once the node is back and reports that it has ended.",
        )
    if predecessor.pod is PodState.RUNNING:
        return Wait(
            Reason.PREDECESSOR_RUNNING,
            f"{holding} and is still running. This pod waits and gets the epoch once the other has ended. If both "
            "belong to the rollout of one Deployment, the other ends only after this one has started: set "
            "`strategy: {type: Recreate, rollingUpdate: null}` on the Deployment, or delete the other pod.",
        )
    if silent >= RECONNECT_SECONDS or (holder.ended and not contact.connected):
        return granted  # an ended epoch accepts nothing more
    return Wait(
        Reason.PREDECESSOR_RUNNING,
        f"{holding} and has ended. This pod gets the epoch once the other's connection has been closed for "
        f"{RECONNECT_SECONDS:.0f} s.",
    )


def _described(agent: AgentRef, holder: Holder, contact: Contact) -> str:
    pod = f"pod {contact.pod_name}" if contact.pod_name else f"the pod with uid {holder.pod_uid}"
    location = f" on node {holder.node}" if holder.node else ""
    return f"{pod[0].upper()}{pod[1:]}{location} holds epoch {holder.epoch} of agent {agent}"
