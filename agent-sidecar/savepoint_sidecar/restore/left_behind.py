"""Check that no file tree of a checkpoint is left behind by a pod whose state folders changed. Pure."""

import re
from collections.abc import Collection, Sequence
from typing import Final

from savepoint.contract.control_protocol import PolicyTerms
from savepoint.errors import StateLeftBehind
from savepoint.repository.format.manifest import Manifest

from savepoint_sidecar.files.roots import COMPONENT_PREFIX, Root

_DIGEST: Final = re.compile(r"(^|-)[0-9a-f]{8}$")
"""Ends the name of a root whose mount path does not follow from the rest of the name."""


def moved_components(manifest: Manifest, roots: Sequence[Root], terms: PolicyTerms) -> dict[str, str]:
    """Return the new name of each file tree that the policy says has moved to a root of this pod.

    A tree that is in the checkpoint under its new name already has moved before.
    """
    trees, known = _trees(manifest), {root.component for root in roots}
    found: dict[str, str] = {}
    for each in terms.moved:
        old, new = COMPONENT_PREFIX + each.old, COMPONENT_PREFIX + each.new
        if old in trees - known and new in known - trees and new not in found.values():
            found.setdefault(old, new)
    return found


def require_all_restored(
    manifest: Manifest, roots: Sequence[Root], terms: PolicyTerms, checkpoint: str, shared: Collection[str] = ()
) -> None:
    """Check that each file tree belongs to a root, has moved to one, or is dropped by the policy.

    Args:
        manifest: The checkpoint.
        roots: The pod's roots, without those on shared volumes.
        terms: The policy.
        checkpoint: The checkpoint's name.
        shared: Names of the pod's roots that are on shared volumes.

    Raises:
        StateLeftBehind: A tree would not be restored, and the next checkpoint would not hold it.
    """
    known = {root.component for root in roots}
    dropped = {COMPONENT_PREFIX + name for name in terms.dropped}
    moved = moved_components(manifest, roots, terms)
    left = sorted(_trees(manifest) - known - dropped - moved.keys())
    if not left:
        return
    trees = _trees(manifest)
    free = [root.mount_path for root in roots if root.component not in trees | set(moved.values())]
    old, new = shown_path(left[0]), free[0] if free else "NEW"
    named = ", ".join(root.mount_path for root in roots) or "none"
    first = "Mount it again at its path"
    if left[0].removeprefix(COMPONENT_PREFIX) in shared:
        first = "Its claim is ReadWriteMany now: make it ReadWriteOnce, or list its volume in spec.state.volumes"
    raise StateLeftBehind(
        f"checkpoint {checkpoint} holds the state folder {old}, which is not part of this pod's state (its state "
        f"folders: {named}): nothing was changed. {first}; or, if it moved, add {{from: {old}, to: {new}}} to "
        f"spec.state.moved in the policy; or leave it out from now on with {old} in spec.state.dropped"
    )


def shown_path(component: str) -> str:
    """Return the mount path of a file tree if its name tells it, else the tree's name."""
    name = component.removeprefix(COMPONENT_PREFIX)
    return f"(tree {name})" if _DIGEST.search(name) else "/" + name.replace("-", "/")


def _trees(manifest: Manifest) -> set[str]:
    return {
        each.name for each in manifest.components if each.layout == "tree" and each.name.startswith(COMPONENT_PREFIX)
    }
