"""When a pod that asks may have the next epoch. Pure: time comes in as an argument.

It does not append the grant (``lineage``), and it is not what makes two writers impossible: that is the conditional
write of the chain. It makes sure that a successor does not start while its predecessor may still be at work.
"""

from dataclasses import dataclass

from savepoint.contract.control_protocol import Wait

from savepoint_operator.model.views import AgentRef, Contact, NodeStanding, PodStanding, Standing

RECONNECT_SECONDS = 15.0
"""How long the connection of a pod that has ended must have been closed."""
TAKEOVER_SECONDS = 45.0
"""How long a pod on a lost node must have been silent."""

PREDECESSOR_RUNNING = "PredecessorRunning"


@dataclass(frozen=True)
class Holder:
    """Who holds the newest epoch, as the chain's head tells."""

    epoch: int
    pod_uid: str
    node: str
    ended: bool
    """The epoch takes no further checkpoint: the run is completed, or the lineage was rolled back."""


@dataclass(frozen=True)
class Keep:
    """The asker holds the newest epoch already."""


@dataclass(frozen=True)
class Granted:
    """The next epoch may be granted."""

    run_ended: bool = False
    """The holder's pod has ended its run: the chain says so first, and the next epoch starts fresh."""


Verdict = Keep | Granted | Wait


def may_grant(  # noqa: PLR0911 - one return per rule
    agent: AgentRef,
    holder: Holder | None,
    asker_uid: str,
    *,
    standing: Standing,
    contact: Contact,
    leader_since: float,
    now: float,
) -> Verdict:
    """Decide for the pod that asks; ``standing`` and ``contact`` are of the holder's pod, times monotonic seconds."""
    if holder is None:
        return Granted()
    if holder.pod_uid == asker_uid:
        return Granted() if holder.ended else Keep()
    granted = Granted(standing.run_ended)
    if contact.released:
        return granted
    silent = (
        0.0
        if contact.connected
        else now - max(leader_since, leader_since if contact.closed_at is None else contact.closed_at)
    )
    who = _described(agent, holder, contact)
    if standing.node is NodeStanding.LOST:
        if silent >= TAKEOVER_SECONDS:
            return granted
        return Wait(
            PREDECESSOR_RUNNING,
            f"{who}. That node is lost, but the pod may still run: the epoch is granted to this pod once the other has "
            f"been silent for {TAKEOVER_SECONDS:.0f} s, or once the node is back and says that it has ended.",
        )
    if standing.pod is PodStanding.RUNNING:
        return Wait(
            PREDECESSOR_RUNNING,
            f"{who} and still runs. The epoch is granted to this pod once the other has ended: it is waited for. If "
            "both belong to the rollout of one Deployment, the other ends only after this one has started: set "
            "`strategy: {type: Recreate, rollingUpdate: null}` on the Deployment, or delete the other pod.",
        )
    if silent >= RECONNECT_SECONDS or (holder.ended and not contact.connected):
        return granted  # nothing of an ended epoch can still come
    return Wait(
        PREDECESSOR_RUNNING,
        f"{who} and has ended. The epoch is granted to this pod once the other's connection has been closed for "
        f"{RECONNECT_SECONDS:.0f} s.",
    )


def _described(agent: AgentRef, holder: Holder, contact: Contact) -> str:
    pod = f"pod {contact.pod_name}" if contact.pod_name else f"the pod with uid {holder.pod_uid}"
    place = f" on node {holder.node}" if holder.node else ""
    return f"{pod[0].upper()}{pod[1:]}{place} holds epoch {holder.epoch} of agent {agent}"
