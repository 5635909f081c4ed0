"""Who a pod is, and how an earlier one stands: ``Directory`` over the API server.

Pods, nodes and owners are read afresh, since answers decide grants; policies and stores come from memory.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from savepoint.contract.control_protocol import PolicyTerms
from savepoint.contract.names import ANNOTATION_CONFIG_HASH, LABEL_AGENT
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
    NodeStanding,
    PodIdentity,
    PodStanding,
    Refusal,
    Standing,
)
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient, Raw
from savepoint_operator.rules import identity, shared_volumes
from savepoint_operator.rules.admission.config_hash import noted_hash
from savepoint_operator.rules.completion import ends_run

REMEMBER_SECONDS: Final = 5.0
"""A pod that waits asks every second; who it is does not change so fast."""
TERMINAL: Final = ("Succeeded", "Failed")


class ClusterPodResolver:
    """Implements ``Directory``."""

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
        self._known: dict[str, tuple[float, Incarnation]] = {}

    async def incarnation(self, pod: PodIdentity) -> Incarnation | Refusal:
        """Who the pod is. Raises Unavailable."""
        known = self._known.get(pod.uid)
        if known is not None and self._monotonic() < known[0]:
            return known[1]
        try:
            found = await self._look(pod)
        except Denied as error:
            raise Unavailable(f"the operator may not read what it needs: {error}") from error
        if isinstance(found, Incarnation):
            self._remember(found)
        elif not found.retry:
            await self._events.warning(EventTarget(PODS, pod.namespace, pod.name, pod.uid), found.reason, found.message)
        return found

    async def standing(self, agent: AgentRef, pod_uid: str, node: str) -> Standing:
        """The pod of this uid and its node, as the API server has them now. Raises Unavailable."""
        pod = await self._pod_of(agent, pod_uid)
        if pod is None:
            standing = PodStanding.GONE
        else:
            standing = PodStanding.TERMINAL if pod.phase in TERMINAL else PodStanding.RUNNING
        agent_record = self._agent_records.get(agent)
        ended = (agent_record is not None and pod_uid in agent_record.ended_pods) or (pod is not None and ends_run(pod))
        return Standing(standing, await self._node(node or (pod.node if pod else "")), ended)

    async def released(self, agent: AgentRef, pod_uid: str) -> bool:
        """What this leader was told, or what the ProtectedAgent says that an earlier one was told."""
        agent_record = self._agent_records.get(agent)
        if agent_record is not None and agent_record.who is not None:
            return agent_record.released_pod == pod_uid
        item = self._cache.agents.get(ObjectKey(*agent))
        reference = (item.status.get("podRef") or {}) if item is not None else {}
        return reference.get("uid") == pod_uid and reference.get("released") is True

    async def going(self, pod: PodIdentity) -> bool:
        """Whether the pod is being deleted and still there."""
        item = self._cache.pods.get(ObjectKey(pod.namespace, pod.name))
        return item is not None and item.meta.uid == pod.uid and item.meta.deleting

    async def pinned(self, agent: AgentRef) -> tuple[int, str] | None:
        """What the ProtectedAgent pins, or what this leader has seen since and not written yet."""
        item = self._cache.agents.get(ObjectKey(*agent))
        agent_record = self._agent_records.get(agent)
        seen = (
            (agent_record.head.record.sequence, agent_record.head.digest)
            if agent_record is not None and agent_record.head is not None
            else None
        )
        written = item.pin if item is not None else None
        return max((pin for pin in (seen, written) if pin is not None), key=lambda pin: pin[0], default=None)

    # -- who ------------------------------------------------------------------------------------------------------

    async def _look(self, who: PodIdentity) -> Incarnation | Refusal:
        raw = await self._cluster.get(PODS, who.namespace, who.name)
        if raw is None or raw["metadata"].get("uid") != who.uid:
            what = f"Pod {who.namespace}/{who.name} with uid {who.uid} is gone"
            return Refusal("PodGone", f"{what}: if another one has its name, that one is served.")
        pod = parse.pod_of(raw)
        agent = identity.agent_of(pod)
        if isinstance(agent, Refusal):
            return agent
        owners = await self._owners(pod)
        policy = next(iter(self._cache.policies_for(pod)), None)
        found = Incarnation(
            agent=agent,
            pod=who,
            node=pod.node,
            config_hash=noted_hash(pod.meta.annotations.get(ANNOTATION_CONFIG_HASH, "")),
            policy=terms(policy),
            policy_name=policy.meta.name if policy else None,
            store_name="",
        )
        refusal = identity.refuse_kind(pod) or await self._ambiguous(agent, pod, owners)
        store = refusal or await usable_store(
            self._cluster, self._cache, pod.meta.namespace, policy.store_name if policy else None
        )
        if isinstance(store, Refusal):
            return replace(store, who=found)
        found = replace(found, store_name=store.meta.name)
        shared = await self._shared(raw)
        return replace(shared, who=found) if isinstance(shared, Refusal) else replace(found, shared=shared)

    async def _ambiguous(self, agent: AgentRef, pod: Pod, owners: list[Workload]) -> Refusal | None:
        """The pod that holds the agent's epoch is it, whatever came later."""
        item = self._cache.agents.get(ObjectKey(*agent))
        if item is not None and (item.status.get("podRef") or {}).get("uid") == pod.meta.uid:
            return None
        refusal = identity.refuse_owner(agent, owners)
        if refusal is not None:
            return refusal
        base = pod.meta.labels[LABEL_AGENT]
        raws = await self._cluster.list(PODS, agent.namespace, f"{LABEL_AGENT}={base}")
        peers = [peer for peer in map(parse.pod_of, raws) if identity.agent_of(peer) == agent]
        rooted = [(peer, identity.root_of(peer, await self._owners(peer))) for peer in peers if peer.live]
        return identity.refuse_peers(agent, pod, identity.root_of(pod, owners), rooted)

    async def _owners(self, pod: Pod) -> list[Workload]:
        """From the pod's own controller upwards, as far as the operator knows the kinds."""
        owners: list[Workload] = []
        owner = pod.owner
        while owner is not None and owner.kind in OWNER_KINDS and len(owners) < 3:
            kind = OWNER_KINDS[owner.kind]
            raw = await self._cluster.get(kind, pod.meta.namespace, owner.name)
            if raw is None or raw["metadata"].get("uid") != owner.uid:
                break
            workload = parse.workload_of({"kind": kind.kind, **raw})
            owners.append(workload)
            owner = workload.owner
        return owners

    async def _shared(self, pod: Raw) -> tuple[ClaimedRoot, ...] | Refusal:
        """What other pods may write too. Where that cannot be known the pod waits: to clear what may be others' would
        destroy it, and to leave out what may be the agent's own would start it on a part of its state."""
        found: list[ClaimedRoot] = []
        for root in shared_volumes.claimed_roots(pod):
            try:
                claim = await self._cluster.get(CLAIMS, pod["metadata"]["namespace"], root.claim)
            except Denied as error:
                return Refusal("ClaimUnreadable", shared_volumes.unreadable(root, str(error)), retry=True)
            if claim is None:
                return Refusal("ClaimUnreadable", shared_volumes.unreadable(root, "it does not exist"), retry=True)
            if shared_volumes.is_shared(claim):
                found.append(root)
        return tuple(found)

    def _remember(self, who: Incarnation) -> None:
        now = self._monotonic()
        self._known = {uid: known for uid, known in self._known.items() if known[0] > now}
        self._known[who.pod.uid] = (now + REMEMBER_SECONDS, who)

    # -- how it stands --------------------------------------------------------------------------------------------

    async def _pod_of(self, agent: AgentRef, uid: str) -> Pod | None:
        """By the name that is known; without one among all pods of the namespace, labelled or not."""
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
        item = self._cache.agents.get(ObjectKey(*agent))
        reference = (item.status.get("podRef") or {}) if item is not None else {}
        return str(reference["name"]) if reference.get("uid") == uid and reference.get("name") else ""

    async def _node(self, name: str) -> NodeStanding:
        """A pod that never came to a node has none that could be lost."""
        if not name:
            return NodeStanding.READY
        raw = await self._cluster.get(NODES, "", name)
        return NodeStanding.LOST if raw is None or parse.node_of(raw).lost else NodeStanding.READY


def terms(policy: Policy | None) -> PolicyTerms:
    """What the sidecar is told."""
    if policy is None:
        return PolicyTerms()
    return PolicyTerms(
        quiesce_timeout_seconds=policy.quiesce_timeout_seconds,
        hold_seconds=policy.hold_seconds,
        exclude=policy.exclude,
    )


async def usable_store(
    cluster: ClusterClient, cache: ClusterCache, namespace: str, name: str | None
) -> Store | Refusal:
    """The store for a namespace's agents whose policy names this one, None: the default one; why they have none.

    The namespace's labels are read afresh where the store asks for some. Raises Unavailable, Denied.
    """
    store = identity.store_for(name, cache.stores)
    if isinstance(store, Refusal):
        return store
    labels: dict[str, str] = {}
    if store.allowed_selector is not None:
        raw = await cluster.get(NAMESPACES, "", namespace)
        labels = dict((raw or {"metadata": {}})["metadata"].get("labels") or {})
    return identity.refuse_store(store, namespace, labels) or store
