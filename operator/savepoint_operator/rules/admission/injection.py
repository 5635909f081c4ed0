"""Injects Savepoint into an opted-in pod: containers, volumes, environment and tolerations. Pure.

The result is a function of the pod, the policies, the namespace's Pod Security level and the uid of earlier pods.
Everything under a reserved name is stripped and added again in canonical form, so injecting twice changes nothing and a
forged copy does not survive. Which agent the pod is to the operator, whether a store may be used, and what there is to
restore is decided later, when the init container connects.

Order of the result: the pod's own init containers, mesh sidecars among them, in their own order → savepoint-restore →
savepoint-sidecar → the pod's containers.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract import names
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.policy import NO_POLICY, choose_policy

from .config_hash import config_hash
from .refusal import INJECTED_CONTAINERS, find_refusal, is_reserved_volume
from .run_as import RunAs, run_as
from .state_roots import State, find_state

INJECTION_VERSION: Final = "1"
SAFE_TO_EVICT_VOLUMES: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
NODE_LOSS_TAINTS: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

_API_DEFAULT_TOLERATION_SECONDS: Final = 300
_DEFAULT_GRACE_SECONDS: Final = 30
_RESOURCES: Final = {"requests": {"cpu": "20m", "memory": "48Mi"}, "limits": {"memory": "320Mi"}}
_AGENT_ENVIRONMENT: Final = {names.ENV_SOCKET: names.SOCKET_PATH, names.ENV_STAGE: names.STAGE_DIRECTORY}
_DOWNWARD: Final = {
    names.ENV_POD_NAME: "metadata.name",
    names.ENV_POD_NAMESPACE: "metadata.namespace",
    names.ENV_POD_UID: "metadata.uid",
    names.ENV_NODE_NAME: "spec.nodeName",
}

Pod = dict[str, Any]


@dataclass(frozen=True)
class InjectionConfig:
    """The installation's settings: the image, and how a pod finds and trusts the operator."""

    image: str
    control_url: str
    control_ca_pem: str
    pull_policy: str = "IfNotPresent"
    node_loss_seconds: int = 30


@dataclass(frozen=True)
class Injected:
    """The injected pod, and the warnings for its creator. ``policy``: the name of the policy that applies."""

    pod: Pod
    warnings: tuple[str, ...]
    policy: str | None


@dataclass(frozen=True)
class _Plan:
    """The decisions about one pod."""

    agent: dict[str, Any]  # the agent's container, in the pod that is being built
    policy: Policy
    state: State
    identity: RunAs
    config: InjectionConfig


def inject(
    pod: Mapping[str, Any],
    policies: Iterable[Policy],
    enforced_level: str,
    config: InjectionConfig,
    *,
    observed_user: int | None = None,
) -> Injected | Refusal:
    """Return the injected pod, or why it is refused. ``pod`` is not changed.

    ``policies``: those of its namespace. ``observed_user``: the uid of the agent's earlier pods, if it is known.
    """
    labels = pod["metadata"].get("labels") or {}
    refusal = find_refusal(pod, labels.get(names.LABEL_AGENT, ""))
    if refusal:
        return refusal
    policy = choose_policy(policies, labels)
    result = _stripped(pod)
    plan = _decide(result, policy or NO_POLICY, enforced_level, config, observed_user)
    if isinstance(plan, Refusal):
        return plan
    _annotate(result, plan)
    spec, agent, added = result["spec"], plan.agent, plan.state.added
    spec["initContainers"] = [*spec["initContainers"], *_injected_containers(result, plan)]
    spec["volumes"] = [*spec["volumes"], *_injected_volumes(plan.policy, plan.state)]
    spec["tolerations"] = _tolerations(spec.get("tolerations") or [], config.node_loss_seconds)
    agent["env"] = [*(agent.get("env") or ()), *({"name": k, "value": v} for k, v in _AGENT_ENVIRONMENT.items())]
    agent["volumeMounts"] = [
        *(agent.get("volumeMounts") or ()),
        {"name": names.VOLUME_SOCKET, "mountPath": names.SOCKET_DIRECTORY},
        {"name": names.VOLUME_STAGE, "mountPath": names.STAGE_DIRECTORY},
        *({"name": root.volume, "mountPath": root.mount_path} for root, _ in added),
    ]
    return Injected(result, plan.state.warnings, policy.name if policy else None)


def _decide(
    pod: Pod, policy: Policy, enforced_level: str, config: InjectionConfig, observed_user: int | None
) -> _Plan | Refusal:
    agent = _agent_container(pod, policy)
    if isinstance(agent, Refusal):
        return agent
    state = find_state(pod, agent, policy)
    if isinstance(state, Refusal):
        return state
    identity = run_as(pod, agent, policy.run_as_user, enforced_level, observed_user)
    if isinstance(identity, Refusal):
        return identity
    return _Plan(agent, policy, state, identity, config)


def _agent_container(pod: Pod, policy: Policy) -> dict[str, Any] | Refusal:
    containers: list[dict[str, Any]] = pod["spec"]["containers"]
    by_name = {container["name"]: container for container in containers}
    if policy.container_name:
        if policy.container_name not in by_name:
            return Refusal(
                Reason.CONTAINER_NOT_FOUND,
                f"policy {policy.name!r} sets containerName {policy.container_name!r}, but the pod's containers are "
                f"{', '.join(by_name) or 'none'}: correct the policy, or narrow its selector",
            )
        return by_name[policy.container_name]
    annotated = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER, "")
    if annotated in by_name:
        return by_name[annotated]
    if not containers:
        return Refusal(Reason.CONTAINER_NOT_FOUND, "the pod has no container besides Savepoint's own")
    return containers[0]


# -- stripping ----------------------------------------------------------------------------------------------------


def _stripped(pod: Mapping[str, Any]) -> Pod:
    """Return the pod without anything under a reserved name. Only parts changed later are copied, the rest shared."""
    metadata, spec = dict(pod["metadata"]), dict(pod["spec"])
    ours = (names.ANNOTATION_INJECTED, names.ANNOTATION_CONFIG_HASH)
    metadata["annotations"] = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in ours}
    spec["volumes"] = [volume for volume in spec.get("volumes") or () if not is_reserved_volume(volume["name"])]
    for kind in ("initContainers", "containers"):
        own = (item for item in spec.get(kind) or () if item["name"] not in INJECTED_CONTAINERS)
        spec[kind] = [_stripped_container(item) for item in own]
    return {**pod, "metadata": metadata, "spec": spec}


def _stripped_container(container: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(container)
    if result.get("volumeMounts"):
        result["volumeMounts"] = [item for item in result["volumeMounts"] if not is_reserved_volume(item["name"])]
    if result.get("env"):
        result["env"] = [item for item in result["env"] if item["name"] not in _AGENT_ENVIRONMENT]
    return result


# -- adding -------------------------------------------------------------------------------------------------------


def _injected_containers(pod: Pod, plan: _Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    config, state = plan.config, plan.state
    grace = pod["spec"].get("terminationGracePeriodSeconds")
    shared: dict[str, Any] = {
        "image": config.image,
        "imagePullPolicy": config.pull_policy,
        "env": [
            {"name": names.ENV_CONTROL_URL, "value": config.control_url},
            {"name": names.ENV_CONTROL_CA, "value": config.control_ca_pem},
            {"name": names.ENV_ROOTS, "value": state.environment()},
            {"name": names.ENV_GRACE_SECONDS, "value": str(_DEFAULT_GRACE_SECONDS if grace is None else grace)},
            {"name": names.ENV_UID_SOURCE, "value": plan.identity.source.value},
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in _DOWNWARD.items()),
        ],
        "resources": dict(plan.policy.resources or _RESOURCES),
        "securityContext": plan.identity.security_context(plan.agent.get("securityContext") or {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": names.VOLUME_STAGE, "mountPath": names.STAGE_DIRECTORY},
            {"name": names.VOLUME_TOKEN, "mountPath": names.TOKEN_DIRECTORY, "readOnly": True},
            {"name": names.VOLUME_NO_API_TOKEN, "mountPath": names.API_TOKEN_DIRECTORY, "readOnly": True},
            *(root.mount() for root in state.roots),
        ],
    }
    restore = copy.deepcopy(shared) | {"name": names.CONTAINER_RESTORE, "command": ["savepoint-restore"]}
    sidecar = copy.deepcopy(shared) | {
        "name": names.CONTAINER_SIDECAR,
        "command": ["savepoint-sidecar"],
        "restartPolicy": "Always",
        "startupProbe": {
            "exec": {"command": ["savepoint-sidecar", "ready"]},
            "periodSeconds": 1,
            "timeoutSeconds": 8,  # one probe waits for up to three
            "failureThreshold": 40,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["savepoint-sidecar", "prestop"]}}},
    }
    sidecar["volumeMounts"].insert(0, {"name": names.VOLUME_SOCKET, "mountPath": names.SOCKET_DIRECTORY})
    return restore, sidecar


def _injected_volumes(policy: Policy, state: State) -> list[dict[str, Any]]:
    token = {"serviceAccountToken": {"audience": names.AUDIENCE, "expirationSeconds": 3600, "path": "token"}}
    return [
        {"name": names.VOLUME_SOCKET, "emptyDir": {}},
        {"name": names.VOLUME_STAGE, "emptyDir": _empty_dir(policy.stage_size_limit, policy.stage_medium)},
        {"name": names.VOLUME_TOKEN, "projected": {"sources": [token]}},
        {"name": names.VOLUME_NO_API_TOKEN, "emptyDir": {}},
        *({"name": root.volume, "emptyDir": _empty_dir(path.size_limit, "")} for root, path in state.added),
    ]


def _empty_dir(size_limit: str | int | None, medium: str) -> dict[str, Any]:
    fields = {"medium": medium or None, "sizeLimit": None if size_limit is None else str(size_limit)}
    return {name: value for name, value in fields.items() if value is not None}


def _annotate(pod: Pod, plan: _Plan) -> None:
    annotations = pod["metadata"]["annotations"]
    annotations[names.ANNOTATION_INJECTED] = INJECTION_VERSION
    annotations[names.ANNOTATION_CONFIG_HASH] = config_hash(pod, plan.agent)
    # Our local volumes must not keep the cluster autoscaler from evicting the pod; the owner's own list is kept.
    listed = [part.strip() for part in annotations.get(SAFE_TO_EVICT_VOLUMES, "").split(",")]
    local = [names.VOLUME_SOCKET, names.VOLUME_STAGE, names.VOLUME_NO_API_TOKEN]
    ours = [*local, *(root.volume for root, _ in plan.state.added)]
    theirs = [name for name in listed if name and not is_reserved_volume(name)]
    annotations[SAFE_TO_EVICT_VOLUMES] = ",".join([*theirs, *ours])


def _tolerations(present: list[dict[str, Any]], seconds: int) -> list[dict[str, Any]]:
    """Shorten the API server's two default tolerations; keep the owner's own, unless equal to a default (300 s)."""
    kept = [item for item in present if not _is_api_default(item)]
    missing = (taint for taint in NODE_LOSS_TAINTS if not any(_tolerates(item, taint) for item in kept))
    return [*kept, *(_toleration(taint, seconds) for taint in missing)]


def _toleration(taint: str, seconds: int) -> dict[str, Any]:
    return {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}


def _is_api_default(item: Mapping[str, Any]) -> bool:
    return any(item == _toleration(taint, _API_DEFAULT_TOLERATION_SECONDS) for taint in NODE_LOSS_TAINTS)


def _tolerates(item: Mapping[str, Any], taint: str) -> bool:
    return (item.get("key") or taint) == taint and (item.get("effect") or "NoExecute") == "NoExecute"
