"""Which folders of a pod's state other pods may write as well, and so are left alone by its containers. Pure.

A pod does not say how many may write a claim, so the claims themselves must be read: here is which ones, and what their
access modes mean. What the policy names as state is state, whoever may write it: the webhook has noted that in the pod.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from savepoint.contract.names import CONTAINER_RESTORE, ENV_ROOTS

from savepoint_operator.model.views import ClaimedRoot

READ_WRITE_MANY: Final = "ReadWriteMany"
_WORDS: Final = ("name", "path")


def claimed_roots(pod: Mapping[str, Any]) -> tuple[ClaimedRoot, ...]:
    """The folders of an injected pod that lie on claims and that no policy names.

    A pod whose roots do not say whether they were chosen was injected by an older version, whose containers know of no
    shared roots: none of them is told.
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
    """Whether pods of several nodes may write the claim at once."""
    return READ_WRITE_MANY in ((claim.get("spec") or {}).get("accessModes") or ())


def left_out(roots: Iterable[ClaimedRoot], policy_name: str | None) -> str:
    """What is not protected, why, and how it would be."""
    named = ", ".join(sorted({f"volume {root.volume} (claim {root.claim})" for root in roots}))
    where = f'policy "{policy_name}"' if policy_name else "an AgentCheckpointPolicy"
    return (
        f"Left out of checkpoints and restores, since other pods may write a {READ_WRITE_MANY} claim: {named}. If this "
        f"agent alone writes it, list it, and every other volume that is state, in spec.state.volumes of {where}; it "
        "counts for pods created from then on."
    )


def unreadable(root: ClaimedRoot, why: str) -> str:
    """Why a pod waits whose claim cannot be looked at."""
    return (
        f"PersistentVolumeClaim {root.claim} of volume {root.volume} cannot be read: {why}. Whether other pods write "
        "it is not known, and a restore could delete what they wrote. The pod starts once it can be read."
    )


def _claims(pod_name: str, volumes: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """Name of the volume and of its claim."""
    for volume in volumes:
        if volume.get("persistentVolumeClaim"):
            yield volume["name"], volume["persistentVolumeClaim"]["claimName"]
        elif volume.get("ephemeral"):
            yield volume["name"], f"{pod_name}-{volume['name']}"


def _roots(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As the webhook has written them; a pod that did not pass it may say anything, and names none then."""
    told = {each.get("name"): each.get("value") or "" for each in container.get("env") or ()}
    try:
        found = json.loads(told.get(ENV_ROOTS, "").replace("$$", "$"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    return [each for each in found if isinstance(each, dict) and all(isinstance(each.get(n), str) for n in _WORDS)]
