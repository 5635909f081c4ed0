"""Which opted-in pods cannot be protected at all, each with the mend. Pure.

It judges the pod as it came, injected or not; what depends on state paths or uids is judged where those are worked out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from savepoint.contract import names

from savepoint_operator.model.views import Refusal

MIRROR: Final = "kubernetes.io/config.mirror"
INJECTED_CONTAINERS: Final = frozenset({names.CONTAINER_RESTORE, names.CONTAINER_SIDECAR})
_VOLUMES: Final = frozenset({names.VOLUME_SOCKET, names.VOLUME_STAGE, names.VOLUME_TOKEN, names.VOLUME_NO_API_TOKEN})
_OWN_FOLDERS: Final = ("/run/savepoint", "/savepoint")


def bears_our_name(volume: str) -> bool:
    """Whether a volume's name is one that only the webhook may give."""
    return volume in _VOLUMES or volume.startswith(names.STATE_VOLUME_PREFIX)


def find_refusal(pod: Mapping[str, Any], agent: str) -> Refusal | None:
    """Why the pod is refused, if it is. ``agent``: the value of its label."""
    spec = pod["spec"]
    if len(agent) > names.AGENT_NAME_MAX or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", agent):
        return Refusal(
            "AgentNameInvalid",
            f"label {names.LABEL_AGENT} must name the agent by a DNS label of at most {names.AGENT_NAME_MAX} "
            f"characters (lower-case letters, digits and '-'), not {agent!r}",
        )
    if spec.get("shareProcessNamespace") or spec.get("hostPID"):
        field = "shareProcessNamespace" if spec.get("shareProcessNamespace") else "hostPID"
        return Refusal(
            "ProcessNamespaceShared",
            f"spec.{field} would let the agent read the sidecar's keys through /proc: remove it, or the label "
            f"{names.LABEL_AGENT}",
        )
    for kind, is_it in (
        ("Windows", (spec.get("os") or {}).get("name") == "windows"),
        ("static", MIRROR in (pod["metadata"].get("annotations") or {})),  # their kubelet never sees what we add
    ):
        if is_it:
            message = f"{kind} pods cannot be protected: remove the label {names.LABEL_AGENT}"
            return Refusal("PlatformUnsupported", message)
    forbidden = {volume["name"] for volume in spec.get("volumes") or () if _bears_token(volume)} | {names.VOLUME_TOKEN}
    for container in _own_containers(spec):
        for mount in container.get("volumeMounts") or ():
            if mount["name"] in forbidden:
                return Refusal(
                    "TokenMounted",
                    f"container {container['name']!r} mounts volume {mount['name']!r}, which holds the token that only "
                    "Savepoint's own containers may have: remove the mount",
                )
            if not bears_our_name(mount["name"]) and f"{mount['mountPath']}/".startswith(
                tuple(f"{folder}/" for folder in _OWN_FOLDERS)
            ):
                return Refusal(
                    "MountPathReserved",
                    f"container {container['name']!r} mounts volume {mount['name']!r} at {mount['mountPath']}, a "
                    f"folder of Savepoint's own ({', '.join(_OWN_FOLDERS)}): mount it elsewhere",
                )
    return None


def _bears_token(volume: Mapping[str, Any]) -> bool:
    """Whether a volume projects a token for our audience."""
    sources = (volume.get("projected") or {}).get("sources") or ()
    return any((source.get("serviceAccountToken") or {}).get("audience") == names.AUDIENCE for source in sources)


def _own_containers(spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The pod's containers without ours."""
    for kind in ("initContainers", "containers"):
        yield from (container for container in spec.get(kind) or () if container["name"] not in INJECTED_CONTAINERS)
