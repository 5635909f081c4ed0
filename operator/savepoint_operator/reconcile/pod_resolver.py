"""Resolves which agent a pod is, and the state of a predecessor, over the API server: implements ``PodResolver``.

Pods, nodes and owners are read from the API server, since the answers decide grants; policies and stores come from the
cache.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from savepoint.contract.control_protocol import MovedRoot, PolicyTerms
from savepoint.contract.names import ANNOTATION_CONFIG_HASH, LABEL_AGENT
from savepoint.contract.vocabulary import Reason
from savepoint.errors import Unavailable

from savepoint_operator.cluster import parse
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import CLAIMS, NAMESPACES, NODES, OWNER_KINDS, PODS
from savepoint_operator.model.objects import ObjectKey, Pod, Policy, Store, Workload
from savepoint_operator.model.views import (
    AgentRef,
    ClaimedRoot,
    Incarnation,
    NodeState,
    PodIdentity,
    PodState,
    PredecessorState,
    Refusal,
)
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient, Raw
from savepoint_operator.rules import identity, shared_volumes
from savepoint_operator.rules.admission.config_hash import annotated_hash
from savepoint_operator.rules.admission.state_roots import root_name
from savepoint_operator.rules.completion import ends_run

REMEMBER_SECONDS: Final = 5.0
"""Time that an answer is reused: a waiting pod asks every second, and its identity does not change that fast."""
MAX_OWNERS: Final = 3
TERMINAL: Final = ("Succeeded", "Failed")


class ClusterPodResolver:
    """Implements ``PodResolver``."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        agent_records: AgentRecords,
        events: Events,
        monotonic: Callable[[], float],
    ) -> None:
        self._cluster, self._cache, self._agent_records, self._events = cluster, cache, agent_records, events
        self._monotonic = monotonic
        self._remembered: dict[str, tuple[float, Incarnation]] = {}
        """(Monotonic seconds until which it is valid, incarnation) by pod UID."""

    async def incarnation(self, pod: PodIdentity) -> Incarnation | Refusal:
        """See ``PodResolver``. A final refusal is also written as an Event on the pod."""
        remembered = self._remembered.get(pod.uid)
        if remembered is not None and self._monotonic() < remembered[0]:
            return remembered[1]
        try:
            found = await self._resolve(pod)
        except Denied as error:
            raise Unavailable(f"the operator's service account lacks a permission: {error}") from error
        if isinstance(found, Incarnation):
            self._remember(found)
        elif not found.retry:
            await self._events.warning(EventTarget(PODS, pod.namespace, pod.name, pod.uid), found.reason, found.message)
        return found

    async def predecessor_state(self, agent: AgentRef, pod_uid: str, node: str) -> PredecessorState:
        """See ``PodResolver``. Raises Unavailable."""
        pod = await self._pod_with_uid(agent, pod_uid)
        state = PodState.GONE
        if pod is not None:
            state = PodState.TERMINAL if pod.phase in TERMINAL else PodState.RUNNING
        agent_record = self._agent_records.get(agent)
        ended = (agent_record is not None and pod_uid in agent_record.ended_pods) or (pod is not None and ends_run(pod))
        return PredecessorState(state, await self._node_state(node or (pod.node if pod else "")), ended)

    async def released(self, agent: AgentRef, pod_uid: str) -> bool:
        """See ``PodResolver``. A release that an earlier leader received is read from the ProtectedAgent."""
        agent_record = self._agent_records.get(agent)
        if agent_record is not None and agent_record.incarnation is not None:
            return agent_record.released_pod == pod_uid
        reference = self._written_pod(agent)
        return reference.get("uid") == pod_uid and reference.get("released") is True

    async def terminating(self, pod: PodIdentity) -> bool:
        """See ``PodResolver``."""
        item = self._cache.pods.get(ObjectKey(pod.namespace, pod.name))
        return item is not None and item.meta.uid == pod.uid and item.meta.deleting

    async def pinned(self, agent: AgentRef) -> tuple[int, str] | None:
        """See ``PodResolver``. A newer record that this leader has seen counts before it is written."""
        item = self._cache.agents.get(ObjectKey(*agent))
        agent_record = self._agent_records.get(agent)
        seen = (
            (agent_record.head.record.sequence, agent_record.head.digest)
            if agent_record is not None and agent_record.head is not None
            else None
        )
        written = item.pin if item is not None else None
        return max((pin for pin in (seen, written) if pin is not None), key=lambda pin: pin[0], default=None)

    # -- which agent a pod is -------------------------------------------------------------------------------------

    async def _resolve(self, identified: PodIdentity) -> Incarnation | Refusal:
        raw = await self._cluster.get(PODS, identified.namespace, identified.name)
        if raw is None or raw["metadata"].get("uid") != identified.uid:
            gone = f"Pod {identified.namespace}/{identified.name} with uid {identified.uid} no longer exists."
            return Refusal(Reason.POD_GONE, f"{gone} If another pod now has its name, that one is served instead.")
        pod = parse.pod_of(raw)
        agent = identity.agent_of(pod)
        if isinstance(agent, Refusal):
            return agent
        owners = await self._owners(pod)
        policy = next(iter(self._cache.policies_for(pod)), None)
        found = Incarnation(
            agent=agent,
            pod=identified,
            node=pod.node,
            config_hash=annotated_hash(pod.meta.annotations.get(ANNOTATION_CONFIG_HASH, "")),
            policy=terms(policy),
            policy_name=policy.meta.name if policy else None,
            store_name="",
            workload=identity.workload_of(pod, owners),
        )
        refusal = identity.refuse_kind(pod) or await self._refuse_ambiguous(agent, pod, owners)
        store = refusal or await usable_store(
            self._cluster, self._cache, pod.meta.namespace, policy.store_name if policy else None
        )
        if isinstance(store, Refusal):
            return replace(store, incarnation=found)
        found = replace(found, store_name=store.meta.name)
        shared = await self._shared_roots(raw)
        return replace(shared, incarnation=found) if isinstance(shared, Refusal) else replace(found, shared=shared)

    async def _refuse_ambiguous(self, agent: AgentRef, pod: Pod, owners: list[Workload]) -> Refusal | None:
        """Return why the pod cannot be the agent next to others; None for the pod that holds the agent's epoch."""
        if self._written_pod(agent).get("uid") == pod.meta.uid:
            return None
        refusal = identity.refuse_owner(agent, owners)
        if refusal is not None:
            return refusal
        base = pod.meta.labels[LABEL_AGENT]
        raws = await self._cluster.list(PODS, agent.namespace, f"{LABEL_AGENT}={base}")
        peers = [peer for peer in map(parse.pod_of, raws) if identity.agent_of(peer) == agent]
        rooted = [(peer, identity.root_of(peer, await self._owners(peer))) for peer in peers if peer.live]
        refusal = identity.refuse_peers(agent, pod, identity.root_of(pod, owners), rooted)
        workload = identity.workload_of(pod, owners)
        return refusal or identity.refuse_workload(agent, pod, workload, self._known_workload(agent))

    def _known_workload(self, agent: AgentRef) -> str:
        """Return the workload that ran the agent last: that of the last grant, or the one in its status."""
        agent_record = self._agent_records.get(agent)
        if agent_record is not None and agent_record.incarnation is not None and agent_record.incarnation.workload:
            return agent_record.incarnation.workload
        item = self._cache.agents.get(ObjectKey(*agent))
        return str(item.status.get("workload") or "") if item is not None else ""

    async def _owners(self, pod: Pod) -> list[Workload]:
        """Return the chain of controllers from the pod upwards, as far as the operator knows their kinds."""
        owners: list[Workload] = []
        owner = pod.owner
        while owner is not None and owner.kind in OWNER_KINDS and len(owners) < MAX_OWNERS:
            kind = OWNER_KINDS[owner.kind]
            raw = await self._cluster.get(kind, pod.meta.namespace, owner.name)
            if raw is None or raw["metadata"].get("uid") != owner.uid:
                break
            workload = parse.workload_of({"kind": kind.kind, **raw})
            owners.append(workload)
            owner = workload.owner
        return owners

    async def _shared_roots(self, pod: Raw) -> tuple[ClaimedRoot, ...] | Refusal:
        """Return the state roots that other pods may write too.

        The pod waits if a claim cannot be read: clearing a root that others share would destroy their files, and
        leaving out a root of the agent's own would start it with a part of its state.
        """
        found: list[ClaimedRoot] = []
        for root in shared_volumes.claimed_roots(pod):
            try:
                claim = await self._cluster.get(CLAIMS, pod["metadata"]["namespace"], root.claim)
            except Denied as error:
                message = shared_volumes.unreadable_message(root, str(error))
                return Refusal(Reason.CLAIM_UNREADABLE, message, retry=True)
            if claim is None:
                message = shared_volumes.unreadable_message(root, "it does not exist")
                return Refusal(Reason.CLAIM_UNREADABLE, message, retry=True)
            if shared_volumes.is_shared(claim):
                found.append(root)
        return tuple(found)

    def _remember(self, found: Incarnation) -> None:
        now = self._monotonic()
        self._remembered = {uid: each for uid, each in self._remembered.items() if each[0] > now}
        self._remembered[found.pod.uid] = (now + REMEMBER_SECONDS, found)

    # -- the state of a predecessor -------------------------------------------------------------------------------

    async def _pod_with_uid(self, agent: AgentRef, uid: str) -> Pod | None:
        """Read the pod by its name if that is known, else find it among all pods of the namespace, labelled or not."""
        name = self._name_of(agent, uid)
        if name:
            raw = await self._cluster.get(PODS, agent.namespace, name)
            return parse.pod_of(raw) if raw is not None and raw["metadata"].get("uid") == uid else None
        raws = await self._cluster.list(PODS, agent.namespace)
        return next((parse.pod_of(raw) for raw in raws if raw["metadata"].get("uid") == uid), None)

    def _name_of(self, agent: AgentRef, uid: str) -> str:
        pod = self._cache.pod_by_uid(agent, uid)
        if pod is not None:
            return pod.meta.name
        reference = self._written_pod(agent)
        return str(reference["name"]) if reference.get("uid") == uid and reference.get("name") else ""

    def _written_pod(self, agent: AgentRef) -> Raw:
        """Return ``status.podRef`` of the ProtectedAgent: the pod that holds the agent's epoch."""
        item = self._cache.agents.get(ObjectKey(*agent))
        return (item.status.get("podRef") or {}) if item is not None else {}

    async def _node_state(self, name: str) -> NodeState:
        """Return the node's state; READY for a pod that was never scheduled, which has no node to lose."""
        if not name:
            return NodeState.READY
        raw = await self._cluster.get(NODES, "", name)
        return NodeState.LOST if raw is None or parse.node_of(raw).lost else NodeState.READY


def terms(policy: Policy | None) -> PolicyTerms:
    """Return the part of the policy that is sent to the sidecar."""
    if policy is None:
        return PolicyTerms()
    return PolicyTerms(
        quiesce_timeout_seconds=policy.quiesce_timeout_seconds,
        hold_seconds=policy.hold_seconds,
        exclude=policy.exclude,
        on_container_restart=policy.on_container_restart,
        on_unknown_files=policy.on_unknown_files,
        shrink_percent=policy.shrink_percent,
        change_detection=policy.change_detection,
        moved=tuple(MovedRoot(root_name(old), root_name(new)) for old, new in policy.state_moved),
        dropped=tuple(map(root_name, policy.state_dropped)),
    )


async def usable_store(
    cluster: ClusterClient, cache: ClusterCache, namespace: str, name: str | None
) -> Store | Refusal:
    """Return the store with this name (None: the default store) if agents of the namespace may use it, or why not.

    The namespace's labels are read from the API server if the store selects namespaces by label. Raises Unavailable,
    Denied.
    """
    store = identity.store_for(name, cache.stores)
    if isinstance(store, Refusal):
        return store
    labels: dict[str, str] = {}
    if store.allowed_selector is not None:
        raw = await cluster.get(NAMESPACES, "", namespace)
        labels = dict((raw or {"metadata": {}})["metadata"].get("labels") or {})
    return identity.refuse_store(store, namespace, labels) or store
