"""Reconciles policies, and reports agent labels that have no effect: on pods without a sidecar and on workloads."""

from dataclasses import replace
from typing import Any, Final

from savepoint.contract.names import LABEL_AGENT
from savepoint.contract.vocabulary import Reason

from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import OWNER_KINDS, PODS, POLICIES
from savepoint_operator.model.objects import ObjectKey, Policy
from savepoint_operator.model.views import Refusal
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.reconcile.pod_resolver import usable_store
from savepoint_operator.rules.identity import agent_of
from savepoint_operator.rules.policy_problems import policy_problem
from savepoint_operator.rules.status.conditions import Condition

MAX_NAMES: Final = 5
"""Number of conflicting policies that a condition names."""


class Policies:
    """Reconciles policies, labelled pods and labelled workloads; ``reconcile.agent`` covers the agents themselves."""

    def __init__(self, dependencies: StepDependencies) -> None:
        self._cluster, self._cache, self._events = dependencies.cluster, dependencies.cache, dependencies.events
        self._status_writer = dependencies.status_writer

    async def reconcile_policy(self, key: ObjectKey) -> None:
        """Write how many pods the policy selects, whether others select them too, and whether its store can be used.

        Raises Unavailable, Denied.
        """
        policy = self._cache.policies.get(key)
        if policy is None:
            return
        store = await usable_store(self._cluster, self._cache, key.namespace, policy.store_name)
        pods = [pod for pod in self._cache.pods if pod.meta.namespace == key.namespace and pod.live]
        matched = [pod for pod in pods if policy.selector.selects(pod.meta.labels)]
        protected, others = 0, set[str]()
        for pod in matched:
            selecting = self._cache.policies_for(pod)
            protected += selecting[0].meta.name == policy.meta.name
            others |= {each.meta.name for each in selecting} - {policy.meta.name}
        invalid = policy_problem(policy)
        conditions = _conditions(policy, others, _refusal(store if isinstance(store, Refusal) else None, invalid))
        patch: dict[str, Any] = {
            "reason": conditions[0].reason,
            "matchedPods": len(matched),
            "protectedAgents": protected,
        }
        await self._status_writer.write(POLICIES, policy, patch, *conditions)
        if invalid is not None:
            await self._events.warning(EventTarget.of(POLICIES, policy.meta), invalid.reason, invalid.message)

    async def reconcile_pod(self, key: ObjectKey) -> None:
        """Write an Event on a labelled pod that nothing protects or that cannot start."""
        pod = self._cache.pods.get(key)
        if pod is None or not pod.live:
            return
        agent = agent_of(pod)
        target = EventTarget.of(PODS, pod.meta)
        if isinstance(agent, Refusal):
            await self._events.warning(target, agent.reason, agent.message)
        elif not pod.injected:
            await self._events.warning(
                target,
                Reason.UNPROTECTED,
                f"Nothing checkpoints this pod: it carries label {LABEL_AGENT} but was not injected, because it was "
                "labelled after it was created or the webhook did not see it. Delete the pod so that its owner "
                "recreates it.",
            )
        elif pod.blocked:
            await self._events.warning(target, Reason.CANNOT_START, pod.blocked)

    async def reconcile_workload(self, kind: str, key: ObjectKey) -> None:
        """Write an Event on a workload that carries the label itself and not on its pod template."""
        workload = self._cache.workloads[kind].get(key)
        if workload is None or workload.template_labelled or LABEL_AGENT not in workload.meta.labels:
            return
        await self._events.warning(
            EventTarget.of(OWNER_KINDS[kind], workload.meta),
            Reason.LABEL_NOT_ON_TEMPLATE,
            f"Label {LABEL_AGENT} is on the {kind} itself, where it has no effect. Move it to "
            "spec.template.metadata.labels.",
        )


def _refusal(store: Refusal | None, invalid: Refusal | None) -> Refusal | None:
    """Return why the policy is not Ready: a store that cannot be used is more urgent than an invalid field."""
    if store is None or invalid is None:
        return store or invalid
    return replace(store, message=f"{store.message} Also invalid: {invalid.message}")


def _conditions(policy: Policy, others: set[str], refusal: Refusal | None) -> tuple[Condition, Condition]:
    ready = Condition.of("Ready", True, Reason.SUSPENDED if policy.suspend else Reason.READY, "")
    if refusal is not None:
        ready = Condition.of("Ready", False, refusal.reason, refusal.message)
    if not others:
        return ready, Condition.of("Conflicting", False, Reason.NO_CONFLICT, "")
    names = ", ".join(sorted(others)[:MAX_NAMES])
    message = f"Other policies select some of the same pods: {names}. The oldest one applies; narrow spec.selector."
    return ready, Condition.of("Conflicting", True, Reason.SELECTORS_OVERLAP, message)
