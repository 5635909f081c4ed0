"""Which agent a pod is, and whether it may be it. Pure: pods, owners and policies come in as values.

Label ``savepoint.dev/agent`` names the agent; pods of a StatefulSet or an indexed Job are agents of their own. One
name with several writers is refused: nobody could tell whose state is the agent's.
"""

import re
from collections.abc import Iterable
from typing import Final

from savepoint.contract.names import AGENT_NAME_MAX, LABEL_AGENT

from savepoint_operator.model.objects import Pod, Policy, Store, Workload
from savepoint_operator.model.views import AgentRef, Refusal

POD_INDEX: Final = "apps.kubernetes.io/pod-index"
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def agent_of(pod: Pod) -> AgentRef | Refusal:
    """The agent that the pod is by its own labels and owner reference."""
    name = pod.meta.labels.get(LABEL_AGENT, "")
    if not name:
        return Refusal("NotAnAgent", f"Pod {pod.meta.key} has no label {LABEL_AGENT}: it did not opt in.")
    index = _index(pod)
    if index is not None:
        name = f"{name}-{index}"
    if len(name) > AGENT_NAME_MAX or not _DNS_LABEL.fullmatch(name):
        return Refusal(
            "AgentNameInvalid",
            f"Agent name {name!r} of pod {pod.meta.key} is no DNS label of at most {AGENT_NAME_MAX} characters: use "
            f"lower-case letters, digits and '-' in label {LABEL_AGENT}.",
        )
    return AgentRef(pod.meta.namespace, name)


def _index(pod: Pod) -> str | None:
    labels = pod.meta.labels
    if pod.owner is None:
        return None
    if pod.owner.kind == "StatefulSet":
        return labels.get(POD_INDEX) or pod.meta.name.rpartition("-")[2]
    if pod.owner.kind == "Job":
        return labels.get(COMPLETION_INDEX) or pod.meta.annotations.get(COMPLETION_INDEX)
    return None


def root_of(pod: Pod, owners: Iterable[Workload]) -> tuple[str, str]:
    """(kind, uid) of what makes the pod: the topmost owner that is known; the pod itself when it has none."""
    top = (pod.owner.kind, pod.owner.uid) if pod.owner else ("Pod", pod.meta.uid)
    for owner in owners:
        if owner.meta.uid == top[1] and owner.owner is not None:
            top = (owner.owner.kind, owner.owner.uid)
    return top


def refuse_owner(agent: AgentRef, owners: Iterable[Workload]) -> Refusal | None:
    """Why pods of these owners cannot be one agent: more than one of them is wanted at a time."""
    for owner in owners:
        if owner.indexed or owner.replicas <= 1 or (owner.kind == "ReplicaSet" and owner.owner is not None):
            continue  # a Deployment speaks for its ReplicaSets: during a rollout each of two has a number of its own
        wanted = "parallelism" if owner.kind == "Job" else "replicas"
        return Refusal(
            "AmbiguousAgent",
            f"{owner.kind} {owner.meta.key} wants {owner.replicas} pods, and all of them would be agent {agent.name}: "
            f"set {wanted} to 1, or use a StatefulSet, whose pods are agents {agent.name}-0, {agent.name}-1, …",
        )
    return None


def refuse_kind(pod: Pod) -> Refusal | None:
    """Why this kind of owner cannot be an agent."""
    if pod.owner is not None and pod.owner.kind == "DaemonSet":
        return Refusal(
            "AmbiguousAgent",
            f"DaemonSet {pod.meta.namespace}/{pod.owner.name} runs a pod on every node, and all of them would be one "
            "agent: use a StatefulSet.",
        )
    return None


def refuse_peers(
    agent: AgentRef, pod: Pod, root: tuple[str, str], peers: Iterable[tuple[Pod, tuple[str, str]]]
) -> Refusal | None:
    """Why the pod cannot be the agent: a live pod made by something else has the same name."""
    for peer, peer_root in peers:
        if peer.meta.uid == pod.meta.uid or not peer.live or peer_root == root:
            continue
        return Refusal(
            "AmbiguousAgent",
            f"Pods {pod.meta.name} and {peer.meta.name} in namespace {agent.namespace} have different owners and both "
            f"say that they are agent {agent.name}: give one another value of label {LABEL_AGENT}, or delete it.",
        )
    return None


def selecting(policies: Iterable[Policy], pod: Pod) -> list[Policy]:
    """The policies that select the pod, the one that counts first: the oldest."""
    found = [each for each in policies if each.selector.selects(pod.meta.labels)]
    return sorted(found, key=lambda each: (each.meta.created, each.meta.name))


def default_store(stores: Iterable[Store]) -> Store | None:
    """The store of agents whose policy names none: the oldest that says it is the default."""
    found = [each for each in stores if each.default]
    return min(found, key=lambda each: (each.meta.created, each.meta.name), default=None)


def store_for(name: str | None, stores: Iterable[Store]) -> Store | Refusal:
    """The store that a policy names, None: the default one; why there is none."""
    every = list(stores)
    if name:
        found, what = (
            next((each for each in every if each.meta.name == name), None),
            f"AgentCheckpointStore {name} does not exist",
        )
    else:
        found, what = default_store(every), "No AgentCheckpointStore is the default one"
    return found or Refusal(
        "NoStore",
        f"{what}: create it, or ask whoever runs the platform to. Pods that need it wait, and start once there is one.",
        retry=True,
    )


def refuse_store(store: Store, namespace: str, labels: dict[str, str]) -> Refusal | None:
    """Why agents of the namespace may not use the store."""
    by_name = store.allowed_names is None or namespace in store.allowed_names
    by_label = store.allowed_selector is None or store.allowed_selector.selects(labels)
    if by_name and by_label:
        return None
    return Refusal(
        "StoreNotAllowed",
        f"AgentCheckpointStore {store.meta.name} is not open to namespace {namespace}: ask whoever runs the platform "
        "to add it to spec.allowedNamespaces, or name another store in the policy's spec.storeName.",
    )
