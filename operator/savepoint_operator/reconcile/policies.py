"""What is around agents: policies and the pods they select, labelled pods that were not injected, labels in vain."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from savepoint.contract.names import LABEL_AGENT

from savepoint_operator.cluster.errors import Missing
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import OWNER_KINDS, PODS, POLICIES
from savepoint_operator.model.objects import ObjectKey, Policy
from savepoint_operator.model.views import Refusal
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.pod_resolver import usable_store
from savepoint_operator.rules.identity import agent_of
from savepoint_operator.rules.status.conditions import Condition, changed, merged

NAMED_MOST: Final = 5


class Policies:
    """Looks at policies, pods and workloads; none of them is an agent's own affair."""

    def __init__(
        self, cluster: ClusterClient, cache: ClusterCache, events: Events, now: Callable[[], datetime]
    ) -> None:
        self._cluster, self._cache, self._events, self._now = cluster, cache, events, now

    async def policy(self, key: ObjectKey) -> None:
        """How many pods it selects, whether another policy selects them too, and whether they have a store.

        Raises Unavailable, Denied.
        """
        policy = self._cache.policies.get(key)
        if policy is None:
            return
        store = await usable_store(self._cluster, self._cache, key.namespace, policy.store_name)
        pods = [pod for pod in self._cache.pods if pod.meta.namespace == key.namespace and pod.live]
        matched = [pod for pod in pods if policy.selector.selects(pod.meta.labels)]
        counting, rivals = 0, set[str]()
        for pod in matched:
            selecting = self._cache.policies_for(pod)
            counting += selecting[0].meta.name == policy.meta.name
            rivals |= {each.meta.name for each in selecting} - {policy.meta.name}
        patch: dict[str, Any] = {
            "observedGeneration": policy.meta.generation,
            "matchedPods": len(matched),
            "protectedAgents": counting,
        }
        wanted = _policy_conditions(policy, rivals, store if isinstance(store, Refusal) else None)
        patch["reason"] = wanted[0].reason
        patch["conditions"] = merged(policy.status.get("conditions") or (), wanted, policy.meta.generation, self._now())
        difference = changed(policy.status, patch)
        if difference:
            try:
                raw = await self._cluster.patch(
                    POLICIES, key.namespace, key.name, {"status": difference}, subresource="status"
                )
            except Missing:
                return
            self._cache.policies.put(raw)

    async def pod(self, key: ObjectKey) -> None:
        """A labelled pod that nobody protects says so in an Event."""
        pod = self._cache.pods.get(key)
        if pod is None or not pod.live:
            return
        agent = agent_of(pod)
        about = EventTarget.of(PODS, pod.meta)
        if isinstance(agent, Refusal):
            await self._events.warning(about, agent.reason, agent.message)
        elif not pod.injected:
            await self._events.warning(
                about,
                "Unprotected",
                f"The pod carries label {LABEL_AGENT} but was not injected, so nothing is checkpointed: it was "
                "labelled after it was created, or the webhook did not see it. Delete the pod so that its "
                "owner makes it anew.",
            )
        elif pod.blocked:
            await self._events.warning(about, "CannotStart", pod.blocked)

    async def workload(self, kind: str, key: ObjectKey) -> None:
        """A label on a workload itself opts nothing in."""
        workload = self._cache.workloads[kind].get(key)
        if workload is None or workload.template_labelled or LABEL_AGENT not in workload.meta.labels:
            return
        await self._events.warning(
            EventTarget.of(OWNER_KINDS[kind], workload.meta),
            "LabelNotOnTemplate",
            f"Label {LABEL_AGENT} is on the {kind} itself, where it does nothing: put it into "
            "spec.template.metadata.labels.",
        )


def _policy_conditions(policy: Policy, rivals: set[str], refusal: Refusal | None) -> tuple[Condition, Condition]:
    ready = Condition.of("Ready", True, "Suspended" if policy.suspend else "Ready", "")
    if refusal is not None:
        ready = Condition.of("Ready", False, refusal.reason, refusal.message)
    if not rivals:
        return ready, Condition.of("Conflicting", False, "NoConflict", "")
    names = ", ".join(sorted(rivals)[:NAMED_MOST])
    message = f"Policies that select some of the same pods: {names}. The oldest one counts: narrow spec.selector."
    return ready, Condition.of("Conflicting", True, "SelectorsOverlap", message)
