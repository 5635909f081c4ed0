"""Refusals of opted-in pods that cannot be protected at all, each with its remedy. Pure.

It judges the pod as it arrived, injected or not. State paths and uids are checked where they are worked out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from savepoint.contract import names
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.views import Refusal

MIRROR: Final = "kubernetes.io/config.mirror"
INJECTED_CONTAINERS: Final = frozenset({names.CONTAINER_RESTORE, names.CONTAINER_SIDECAR})
_VOLUMES: Final = frozenset({names.VOLUME_SOCKET, names.VOLUME_STAGE, names.VOLUME_TOKEN, names.VOLUME_NO_API_TOKEN})
_RESERVED_PATHS: Final = ("/run/savepoint", "/savepoint")


def is_reserved_volume(volume: str) -> bool:
    """Return whether only the webhook may give a volume this name."""
    return volume in _VOLUMES or volume.startswith(names.STATE_VOLUME_PREFIX)


def find_refusal(pod: Mapping[str, Any], agent: str) -> Refusal | None:
    """Return why the pod is refused, or None. ``agent``: the value of its label."""
    spec = pod["spec"]
    if len(agent) > names.AGENT_NAME_MAX or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", agent):
        return Refusal(
            Reason.AGENT_NAME_INVALID,
            f"label {names.LABEL_AGENT} must be a DNS label of at most {names.AGENT_NAME_MAX} characters "
            f"(lower-case letters, digits and '-'), not {agent!r}",
        )
    if spec.get("shareProcessNamespace") or spec.get("hostPID"):
        field = "shareProcessNamespace" if spec.get("shareProcessNamespace") else "hostPID"
        return Refusal(
            Reason.PROCESS_NAMESPACE_SHARED,
            f"spec.{field} would let the agent read the sidecar's keys through /proc: remove it, or remove the label "
            f"{names.LABEL_AGENT}",
        )
    for kind, unsupported in (
        ("Windows", (spec.get("os") or {}).get("name") == "windows"),
        ("static", MIRROR in (pod["metadata"].get("annotations") or {})),  # their kubelet never sees the injected parts
    ):
        if unsupported:
            message = f"{kind} pods cannot be protected: remove the label {names.LABEL_AGENT}"
            return Refusal(Reason.PLATFORM_UNSUPPORTED, message)
    forbidden = {volume["name"] for volume in spec.get("volumes") or () if _projects_our_token(volume)} | {
        names.VOLUME_TOKEN
    }
    for container in _own_containers(spec):
        for mount in container.get("volumeMounts") or ():
            if mount["name"] in forbidden:
                return Refusal(
                    Reason.TOKEN_MOUNTED,
                    f"container {container['name']!r} mounts volume {mount['name']!r}, which holds the token that only "
                    "Savepoint's own containers may have: remove the mount",
                )
            if not is_reserved_volume(mount["name"]) and f"{mount['mountPath']}/".startswith(
                tuple(f"{path}/" for path in _RESERVED_PATHS)
            ):
                return Refusal(
                    Reason.MOUNT_PATH_RESERVED,
                    f"container {container['name']!r} mounts volume {mount['name']!r} at {mount['mountPath']}, a path "
                    f"reserved for Savepoint ({', '.join(_RESERVED_PATHS)}): mount it elsewhere",
                )
    return None


def _projects_our_token(volume: Mapping[str, Any]) -> bool:
    """Return whether a volume projects a token for Savepoint's audience."""
    sources = (volume.get("projected") or {}).get("sources") or ()
    return any((source.get("serviceAccountToken") or {}).get("audience") == names.AUDIENCE for source in sources)


def _own_containers(spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield the pod's containers without the injected ones."""
    for kind in ("initContainers", "containers"):
        yield from (container for container in spec.get(kind) or () if container["name"] not in INJECTED_CONTAINERS)
