"""Detection of state roots that other pods may write too, so that the pod's containers must leave them alone. Pure.

A pod's spec does not say how many may write a claim, so the operator reads the claims: this module says which ones, and
what their access modes mean. A volume that the policy lists is state even if other pods may write it; the webhook has
noted that in the pod.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from savepoint.contract.names import CONTAINER_RESTORE, ENV_ROOTS

from savepoint_operator.model.views import ClaimedRoot

READ_WRITE_MANY: Final = "ReadWriteMany"
_ROOT_FIELDS: Final = ("name", "path")


def claimed_roots(pod: Mapping[str, Any]) -> tuple[ClaimedRoot, ...]:
    """Return the roots of an injected pod that lie on claims and that no policy lists.

    A pod whose roots do not say whether they were chosen was injected by an older version, whose containers do not know
    shared roots: for such a pod none is returned.
    """
    spec = pod.get("spec") or {}
    containers = (each for each in spec.get("initContainers") or () if each.get("name") == CONTAINER_RESTORE)
    container: Mapping[str, Any] = next(containers, {})
    claims = dict(_claims(pod["metadata"]["name"], spec.get("volumes") or ()))
    volumes = {each.get("mountPath"): each["name"] for each in container.get("volumeMounts") or ()}
    return tuple(
        ClaimedRoot(str(root["name"]), volumes[root["path"]], claims[volumes[root["path"]]])
        for root in _roots(container)
        if root.get("chosen") is False and volumes.get(root["path"]) in claims
    )


def is_shared(claim: Mapping[str, Any]) -> bool:
    """Return whether pods on several nodes may write the claim at once."""
    return READ_WRITE_MANY in ((claim.get("spec") or {}).get("accessModes") or ())


def left_out_message(roots: Iterable[ClaimedRoot], policy_name: str | None) -> str:
    """Return what is not protected, why, and how to protect it."""
    volumes = ", ".join(sorted({f"volume {root.volume} (claim {root.claim})" for root in roots}))
    where = f'policy "{policy_name}"' if policy_name else "an AgentCheckpointPolicy"
    return (
        f"Left out of checkpoints and restores, because other pods may write a {READ_WRITE_MANY} claim: {volumes}. If "
        "only this agent writes it, list it and every other volume that is state in spec.state.volumes of "
        f"{where}; the change applies to pods created afterwards."
    )


def unreadable_message(root: ClaimedRoot, cause: str) -> str:
    """Return why a pod waits whose claim cannot be read."""
    return (
        f"PersistentVolumeClaim {root.claim} of volume {root.volume} cannot be read: {cause}. Other pods might write "
        "it, and a restore could delete their files. The pod starts once the claim can be read."
    )


def _claims(pod_name: str, volumes: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """Yield the names of each volume on a claim and of its claim."""
    for volume in volumes:
        if volume.get("persistentVolumeClaim"):
            yield volume["name"], volume["persistentVolumeClaim"]["claimName"]
        elif volume.get("ephemeral"):
            yield volume["name"], f"{pod_name}-{volume['name']}"


def _roots(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the roots that the webhook wrote; none if malformed, as may be in a pod that bypassed the webhook."""
    variables = {each.get("name"): each.get("value") or "" for each in container.get("env") or ()}
    try:
        found = json.loads(variables.get(ENV_ROOTS, "").replace("$$", "$"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    return [
        each
        for each in found
        if isinstance(each, dict) and all(isinstance(each.get(name), str) for name in _ROOT_FIELDS)
    ]
