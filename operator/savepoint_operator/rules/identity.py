"""Identity of a pod: its agent, and whether it may act as that agent. Pure: owners, policies and stores are arguments.

Label ``savepoint.dev/agent`` names the agent; each pod of a StatefulSet or an indexed Job is a separate agent. A name
with several writers is refused, since none of them could be trusted to hold the agent's state.
"""

import re
from collections.abc import Iterable
from typing import Final

from savepoint.contract.names import AGENT_NAME_MAX, ANNOTATION_MOVED_FROM, LABEL_AGENT
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.objects import Pod, Store, Workload
from savepoint_operator.model.views import AgentRef, Refusal

POD_INDEX: Final = "apps.kubernetes.io/pod-index"
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def agent_of(pod: Pod) -> AgentRef | Refusal:
    """Return the agent that the pod's own labels and owner reference name."""
    name = pod.meta.labels.get(LABEL_AGENT, "")
    if not name:
        return Refusal(
            Reason.NOT_AN_AGENT,
            f"Pod {pod.meta.key} has no label {LABEL_AGENT}: it did not opt in.",
        )
    index = _index(pod)
    if index is not None:
        name = f"{name}-{index}"
    if len(name) > AGENT_NAME_MAX or not _DNS_LABEL.fullmatch(name):
        return Refusal(
            Reason.AGENT_NAME_INVALID,
            f"Agent name {name!r} of pod {pod.meta.key} is not a DNS label of at most {AGENT_NAME_MAX} characters. Use "
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
    """Return (kind, uid) of the pod's topmost known owner, or of the pod itself if it has none."""
    top = (pod.owner.kind, pod.owner.uid) if pod.owner else ("Pod", pod.meta.uid)
    for owner in owners:
        if owner.meta.uid == top[1] and owner.owner is not None:
            top = (owner.owner.kind, owner.owner.uid)
    return top


def workload_of(pod: Pod, owners: Iterable[Workload]) -> str:
    """Return the pod's topmost known owner as "Kind/name"; empty if it has none, or if it is unknown.

    Each run of a Job has a Job of its own, so its name does not count. A ReplicaSet that does not exist any more does
    not tell its Deployment.
    """
    top, known = pod.owner, list(owners)
    if top is not None and top.kind == "ReplicaSet" and not known:
        return ""
    for owner in known:
        if top is not None and owner.meta.uid == top.uid and owner.owner is not None:
            top = owner.owner
    if top is None:
        return ""
    return top.kind if top.kind == "Job" else f"{top.kind}/{top.name}"


def refuse_workload(agent: AgentRef, pod: Pod, workload: str, known: str) -> Refusal | None:
    """Return a refusal if another workload ran the agent before, unless the pod names that one as its origin."""
    if not workload or not known or workload == known or pod.meta.annotations.get(ANNOTATION_MOVED_FROM) == known:
        return None
    return Refusal(
        Reason.AMBIGUOUS_AGENT,
        f"Pod {pod.meta.name} of {workload} claims to be agent {agent.name} in namespace {agent.namespace}, which "
        f"{known} ran before. If they are two agents, change label {LABEL_AGENT} of one of them. If the agent moved, "
        f"add annotation {ANNOTATION_MOVED_FROM}: {known} to the pod template of {workload}.",
    )


def refuse_owner(agent: AgentRef, owners: Iterable[Workload]) -> Refusal | None:
    """Return a refusal if one of the owners wants more than one pod at a time, all of which would be one agent."""
    for owner in owners:
        if owner.indexed or owner.replicas <= 1 or (owner.kind == "ReplicaSet" and owner.owner is not None):
            continue  # the Deployment counts, not its ReplicaSets: during a rollout each of two has a number of its own
        setting = "parallelism" if owner.kind == "Job" else "replicas"
        return Refusal(
            Reason.AMBIGUOUS_AGENT,
            f"{owner.kind} {owner.meta.key} wants {owner.replicas} pods, and all of them would be agent {agent.name}. "
            f"Set {setting} to 1, or use a StatefulSet, whose pods are agents {agent.name}-0, {agent.name}-1, …",
        )
    return None


def refuse_kind(pod: Pod) -> Refusal | None:
    """Return a refusal if pods of this kind of owner cannot be agents."""
    if pod.owner is not None and pod.owner.kind == "DaemonSet":
        return Refusal(
            Reason.AMBIGUOUS_AGENT,
            f"DaemonSet {pod.meta.namespace}/{pod.owner.name} runs a pod on every node, and all of them would be one "
            "agent. Use a StatefulSet.",
        )
    return None


def refuse_peers(
    agent: AgentRef, pod: Pod, root: tuple[str, str], peers: Iterable[tuple[Pod, tuple[str, str]]]
) -> Refusal | None:
    """Return a refusal if a live pod with a different owner claims the same agent name."""
    for peer, peer_root in peers:
        if peer.meta.uid == pod.meta.uid or not peer.live or peer_root == root:
            continue
        return Refusal(
            Reason.AMBIGUOUS_AGENT,
            f"Pods {pod.meta.name} and {peer.meta.name} in namespace {agent.namespace} have different owners and both "
            f"claim to be agent {agent.name}. Change label {LABEL_AGENT} of one of them, or delete it.",
        )
    return None


def default_store(stores: Iterable[Store]) -> Store | None:
    """Return the store of agents whose policy names none: the oldest one that is marked as default."""
    found = [each for each in stores if each.default]
    return min(found, key=lambda each: (each.meta.created, each.meta.name), default=None)


def store_for(name: str | None, stores: Iterable[Store]) -> Store | Refusal:
    """Return the store of this name (None: the default one), or why there is none."""
    every = list(stores)
    if name:
        found = next((each for each in every if each.meta.name == name), None)
        problem = f"AgentCheckpointStore {name} does not exist"
    else:
        found, problem = default_store(every), "No AgentCheckpointStore is the default one"
    return found or Refusal(
        Reason.NO_STORE,
        f"{problem}. Create it, or ask the platform team to; pods that need it wait and start once it exists.",
        retry=True,
    )


def refuse_store(store: Store, namespace: str, labels: dict[str, str]) -> Refusal | None:
    """Return a refusal if agents of the namespace may not use the store."""
    by_name = store.allowed_names is None or namespace in store.allowed_names
    by_label = store.allowed_selector is None or store.allowed_selector.selects(labels)
    if by_name and by_label:
        return None
    return Refusal(
        Reason.STORE_NOT_ALLOWED,
        f"AgentCheckpointStore {store.meta.name} is not open to namespace {namespace}. Ask the platform team to add "
        "the namespace to spec.allowedNamespaces, or name another store in the policy's spec.storeName.",
    )
