"""Which folders of the agent's container are state, and how the injected containers see them. Pure.

Every writable volume of the agent's container is a root, or those that the policy names, and so is every path that
annotation or policy names; a path that is no volume gets an emptyDir. A pod does not say how many may write a claim, so
which ones are shared is found when the pod asks (``shared_volumes``); here is noted which volumes the policy names.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract.names import ANNOTATION_STATE, STATE_DIRECTORY, STATE_VOLUME_PREFIX

from savepoint_operator.model.views import Refusal

from .policy import AdmissionPolicy, StatePath

_PERSISTENT: Final = {"emptyDir": False, "ephemeral": False, "persistentVolumeClaim": True}
_NEVER_STATE: Final = frozenset({"configMap", "secret", "projected", "downwardAPI", "image"})  # read-only by nature
_SYSTEM: Final = frozenset(f"/{name}" for name in ("bin", "boot", "etc", "lib", "lib64", "run", "sbin", "usr", "var"))
_RESERVED: Final = ("/dev", "/proc", "/sys", "/savepoint", "/run/savepoint", "/run/secrets", "/var/run")
_NAME_MAX: Final = 63 - len(STATE_VOLUME_PREFIX)
PATHS_MOST: Final = 64
MOUNTS_MOST: Final = 256
"""Paths and mounts are compared with each other: whoever writes a hundred thousand would hold up all other pods."""


@dataclass(frozen=True)
class Root:
    """One folder of state: ``mount_path`` in the agent's container, ``path`` in the injected ones."""

    mount_path: str
    volume: str
    persistent: bool
    sub_path: str = ""
    chosen: bool = False
    """The policy names its volume: it is state even if other pods may write it."""

    @property
    def name(self) -> str:
        """Made from the mount path alone, so that the next pod's root has the same name. A DNS label."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.mount_path.lower()).strip("-")
        if len(slug) <= _NAME_MAX and re.fullmatch(r"(/[a-z0-9]+)+", self.mount_path):
            return slug
        mark = hashlib.sha256(self.mount_path.encode()).hexdigest()[:8]
        return f"{slug[: _NAME_MAX - 9].strip('-')}-{mark}".lstrip("-")

    @property
    def path(self) -> str:
        return f"{STATE_DIRECTORY}/{self.name}"

    def mount(self) -> dict[str, Any]:
        """The volumeMount of the injected containers."""
        mount = {"name": self.volume, "mountPath": self.path}
        return mount | {"subPath": self.sub_path} if self.sub_path else mount


@dataclass(frozen=True)
class State:
    """``added``: paths without a volume, each with the emptyDir that is made for it."""

    roots: tuple[Root, ...]
    added: tuple[tuple[Root, StatePath], ...]
    warnings: tuple[str, ...]

    def environment(self) -> str:
        """The value of SAVEPOINT_ROOTS, as a container's env holds it: the kubelet reads $$ as $."""
        fields = (
            {
                "name": root.name,
                "mountPath": root.mount_path,
                "path": root.path,
                "persistent": root.persistent,
                "chosen": root.chosen,
            }
            for root in self.roots
        )
        return json.dumps(list(fields), separators=(",", ":")).replace("$", "$$")


def find_state(pod: Mapping[str, Any], container: Mapping[str, Any], policy: AdmissionPolicy) -> State | Refusal:
    """The state of a pod that bears nothing injected."""
    count = len(container.get("volumeMounts") or ())
    if count > MOUNTS_MOST:
        what = f"container {container['name']!r:.80} has {count} volumeMounts, of which at most {MOUNTS_MOST} can be"
        return Refusal("StatePathInvalid", f"{what} looked at: mount fewer volumes")
    paths = _asked_paths(pod, policy)
    if isinstance(paths, Refusal):
        return paths
    warnings: list[str] = []
    roots = _volume_roots(pod, container, policy, warnings)
    mounts = {_normal(item["mountPath"]): item["name"] for item in container.get("volumeMounts") or ()}
    added: list[tuple[Root, StatePath]] = []
    for path in paths:
        covering = _covering(path.mount_path, mounts)
        if covering is None:
            root = Root(path.mount_path, "", persistent=False)
            root = Root(path.mount_path, STATE_VOLUME_PREFIX + root.name, persistent=False)
            added.append((root, path))
            mounts[path.mount_path] = root.volume
        elif mounts[covering] not in {root.volume for root in (*roots, *(root for root, _ in added))}:
            warnings.append(
                f"state path {path.mount_path} lies in volume {mounts[covering]!r}, which cannot be captured: "
                "mount an emptyDir or a claim there"
            )
    every = (*roots, *(root for root, _ in added))
    return State(tuple(sorted(every, key=lambda root: root.mount_path)), tuple(added), tuple(warnings))


def _volume_roots(
    pod: Mapping[str, Any], container: Mapping[str, Any], policy: AdmissionPolicy, warnings: list[str]
) -> list[Root]:
    named = policy.state_volumes
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
    candidates: list[Root] = []
    for mount in container.get("volumeMounts") or ():
        if named is not None and mount["name"] not in named:
            continue
        where, volume = _normal(mount["mountPath"]), volumes.get(mount["name"])
        if volume is None or mount.get("readOnly") or _within(where, ("/dev",)):
            continue  # below /dev: shared memory of processes that will be gone
        kind = next((key for key in volume if key != "name"), "emptyDir")
        why_not = _why_not(kind, volume, mount, chosen=named is not None)
        if why_not:
            warnings.append(f"{where} (volume {mount['name']!r}) is not protected: {why_not}")
        elif kind in _PERSISTENT and not (volume[kind] or {}).get("readOnly"):
            sub_path = mount.get("subPath") or ""
            candidates.append(Root(where, mount["name"], _PERSISTENT[kind], sub_path, chosen=named is not None))
    mounted = {mount["name"] for mount in container.get("volumeMounts") or ()}
    warnings += [
        f"policy {policy.name!r} names volume {name!r} as state, but container {container['name']!r} does not mount it"
        for name in named or ()
        if name not in mounted
    ]
    return _outermost(candidates)


def _why_not(kind: str, volume: Mapping[str, Any], mount: Mapping[str, Any], *, chosen: bool) -> str:
    """Why a writable volume is no state though one might expect it; empty where it is, or where nobody would."""
    if kind in _NEVER_STATE:
        return ""
    if kind not in _PERSISTENT:
        return f"a {kind} volume may be shared with others; use an emptyDir or a claim"
    if kind == "ephemeral" and not chosen:
        template = (volume["ephemeral"] or {}).get("volumeClaimTemplate") or {}
        if "ReadWriteMany" in ((template.get("spec") or {}).get("accessModes") or ()):
            return "it is ReadWriteMany; use ReadWriteOnce, or name it in the policy's spec.state.volumes"
    if mount.get("subPathExpr"):
        return "its mount uses subPathExpr; use subPath"
    return ""


def _outermost(candidates: Sequence[Root]) -> list[Root]:
    """One root for each part of a volume: a mount of a folder inside another root's part would be captured twice."""
    kept: list[tuple[str, Root]] = []
    for root in sorted(candidates, key=lambda root: len(root.sub_path)):
        part = posixpath.normpath(root.sub_path) if root.sub_path else ""
        if not any(root.volume == other.volume and _holds(outer, part) for outer, other in kept):
            kept.append((part, root))
    return [root for _, root in kept]


def _asked_paths(pod: Mapping[str, Any], policy: AdmissionPolicy) -> list[StatePath] | Refusal:
    """Of annotation and policy, without doubles and without paths inside other paths; sorted."""
    text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_STATE) or ""
    limits = {path.mount_path: path for path in policy.state_paths}
    asked = [StatePath(part.strip()) for part in text.split(",", PATHS_MOST) if part.strip()]
    if len(asked) > PATHS_MOST:
        return Refusal("StatePathInvalid", f"annotation {ANNOTATION_STATE} names more than {PATHS_MOST} paths")
    for path in asked:
        fault = _fault(path.mount_path)
        if fault:
            return Refusal("StatePathInvalid", f"annotation {ANNOTATION_STATE}: {path.mount_path!r:.80} {fault}")
    for path in limits.values():
        fault = _fault(path.mount_path)
        if fault:
            return Refusal(
                "StatePathInvalid", f"policy {policy.name!r}: spec.state.paths: {path.mount_path!r:.80} {fault}"
            )
    every = {_normal(path.mount_path): path for path in (*asked, *limits.values())}
    return [
        StatePath(where, every[where].size_limit)
        for where in sorted(every)
        if not any(where != other and _within(where, (other,)) for other in every)
    ]


def _fault(path: str) -> str:
    if not path.startswith("/") or _normal(path) == "/":
        return "must be an absolute path below /, such as /workspace"
    if ".." in path.split("/") or re.search(r"[:\x00-\x1f]", path):
        return "must not hold '..', ':' or control characters"
    if _normal(path) in _SYSTEM or _within(_normal(path), _RESERVED):
        return "is a folder of the system's or of Savepoint's own, which a volume would hide; name one of the agent's"
    return ""


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).strip("/")


def _covering(path: str, mounts: Iterable[str]) -> str | None:
    """The innermost mount that holds the path."""
    return max((mount for mount in mounts if _within(path, (mount,))), key=len, default=None)


def _holds(outer: str, inner: str) -> bool:
    """Whether subPath ``outer`` of a volume holds subPath ``inner``, both normal; the empty one is the whole volume."""
    return not outer or _within(inner, (outer,))


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
