"""Selection of the agent container's directories that are state, and their mounts in the injected containers. Pure.

Roots are every writable volume of the agent's container, or those that the policy lists, and every path that annotation
or policy lists; a path without a volume gets an emptyDir. A pod does not say how many may write a claim, so shared ones
are found when the pod connects (``shared_volumes``); this module notes which volumes the policy lists.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract.names import ANNOTATION_STATE, STATE_DIRECTORY, STATE_VOLUME_PREFIX
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.objects import Policy, StatePath
from savepoint_operator.model.views import Refusal

_PERSISTENT: Final = {"emptyDir": False, "ephemeral": False, "persistentVolumeClaim": True}
_NEVER_STATE: Final = frozenset({"configMap", "secret", "projected", "downwardAPI", "image"})  # read-only by nature
_SYSTEM: Final = frozenset(f"/{name}" for name in ("bin", "boot", "etc", "lib", "lib64", "run", "sbin", "usr", "var"))
_RESERVED: Final = ("/dev", "/proc", "/sys", "/savepoint", "/run/savepoint", "/run/secrets", "/var/run")
_NAME_MAX: Final = 63 - len(STATE_VOLUME_PREFIX)
MAX_PATHS: Final = 64
MAX_MOUNTS: Final = 256
"""Paths and mounts are compared pairwise: a pod with a hundred thousand would block the admission of all others."""


@dataclass(frozen=True)
class Root:
    """One directory of state: ``mount_path`` in the agent's container, ``path`` in the injected ones."""

    mount_path: str
    volume: str
    persistent: bool
    sub_path: str = ""
    chosen: bool = False
    """The policy lists its volume, so it is state even if other pods may write it."""

    @property
    def name(self) -> str:
        """A DNS label derived from the mount path alone, so that the root has the same name in the agent's next pod."""
        return root_name(self.mount_path)

    @property
    def path(self) -> str:
        """The directory at which the injected containers mount it."""
        return f"{STATE_DIRECTORY}/{self.name}"

    def mount(self) -> dict[str, Any]:
        """Return the volumeMount of the injected containers."""
        mount = {"name": self.volume, "mountPath": self.path}
        return mount | {"subPath": self.sub_path} if self.sub_path else mount


@dataclass(frozen=True)
class State:
    """The state of a pod. ``added``: paths without a volume, each with the emptyDir created for it."""

    roots: tuple[Root, ...]
    added: tuple[tuple[Root, StatePath], ...]
    warnings: tuple[str, ...]

    def environment(self) -> str:
        """Return the value of SAVEPOINT_ROOTS for a container's env, where the kubelet reads $$ as $."""
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


def root_name(mount_path: str) -> str:
    """Return the name of the root with this mount path, as a DNS label."""
    slug = re.sub(r"[^a-z0-9]+", "-", mount_path.lower()).strip("-")
    if len(slug) <= _NAME_MAX and re.fullmatch(r"(/[a-z0-9]+)+", mount_path):
        return slug
    digest = hashlib.sha256(mount_path.encode()).hexdigest()[:8]
    return f"{slug[: _NAME_MAX - 9].strip('-')}-{digest}".lstrip("-")


def find_state(pod: Mapping[str, Any], container: Mapping[str, Any], policy: Policy) -> State | Refusal:
    """Return the state of a pod without injected parts, or why a path cannot be state."""
    count = len(container.get("volumeMounts") or ())
    if count > MAX_MOUNTS:
        return Refusal(
            Reason.STATE_PATH_INVALID,
            f"container {container['name']!r:.80} has {count} volumeMounts, more than the {MAX_MOUNTS} that Savepoint "
            "examines: mount fewer volumes",
        )
    paths = _requested_paths(pod, policy)
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
                f"state path {path.mount_path} is in volume {mounts[covering]!r}, which cannot be captured: "
                "mount an emptyDir or a claim there"
            )
    every = (*roots, *(root for root, _ in added))
    return State(tuple(sorted(every, key=lambda root: root.mount_path)), tuple(added), tuple(warnings))


def _volume_roots(
    pod: Mapping[str, Any], container: Mapping[str, Any], policy: Policy, warnings: list[str]
) -> list[Root]:
    named = policy.state_volumes
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
    candidates: list[Root] = []
    for mount in container.get("volumeMounts") or ():
        if named is not None and mount["name"] not in named:
            continue
        where, volume = _normal(mount["mountPath"]), volumes.get(mount["name"])
        if volume is None or mount.get("readOnly") or _within(where, ("/dev",)):
            continue  # below /dev: shared memory of processes that will no longer exist
        kind = next((key for key in volume if key != "name"), "emptyDir")
        problem = _volume_problem(kind, volume, mount, chosen=named is not None)
        if problem:
            warnings.append(f"{where} (volume {mount['name']!r}) is not protected: {problem}")
        elif kind in _PERSISTENT and not (volume[kind] or {}).get("readOnly"):
            sub_path = mount.get("subPath") or ""
            candidates.append(Root(where, mount["name"], _PERSISTENT[kind], sub_path, chosen=named is not None))
    mounted = {mount["name"] for mount in container.get("volumeMounts") or ()}
    warnings += [
        f"policy {policy.name!r} lists volume {name!r} as state, but container {container['name']!r} does not mount it"
        for name in named or ()
        if name not in mounted
    ]
    return _outermost(candidates)


def _volume_problem(kind: str, volume: Mapping[str, Any], mount: Mapping[str, Any], *, chosen: bool) -> str:
    """Return why a writable volume is not state although users may expect it; else an empty text."""
    if kind in _NEVER_STATE:
        return ""
    if kind not in _PERSISTENT:
        return f"a {kind} volume may be shared with other pods; use an emptyDir or a claim"
    if kind == "ephemeral" and not chosen:
        template = (volume["ephemeral"] or {}).get("volumeClaimTemplate") or {}
        if "ReadWriteMany" in ((template.get("spec") or {}).get("accessModes") or ()):
            return "it is ReadWriteMany; use ReadWriteOnce, or list it in the policy's spec.state.volumes"
    if mount.get("subPathExpr"):
        return "its mount uses subPathExpr; use subPath"
    return ""


def _outermost(candidates: Sequence[Root]) -> list[Root]:
    """Drop each mount of a directory inside another root's part of the same volume; it would be captured twice."""
    kept: list[tuple[str, Root]] = []
    for root in sorted(candidates, key=lambda root: len(root.sub_path)):
        part = posixpath.normpath(root.sub_path) if root.sub_path else ""
        if not any(root.volume == other.volume and _contains(outer, part) for outer, other in kept):
            kept.append((part, root))
    return [root for _, root in kept]


def _requested_paths(pod: Mapping[str, Any], policy: Policy) -> list[StatePath] | Refusal:
    """Return the paths of annotation and policy, sorted, without duplicates and without paths inside other paths."""
    text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_STATE) or ""
    limits = {path.mount_path: path for path in policy.state_paths}
    annotated = [StatePath(part.strip()) for part in text.split(",", MAX_PATHS) if part.strip()]
    if len(annotated) > MAX_PATHS:
        return Refusal(Reason.STATE_PATH_INVALID, f"annotation {ANNOTATION_STATE} lists more than {MAX_PATHS} paths")
    for path in annotated:
        problem = path_problem(path.mount_path)
        if problem:
            return Refusal(
                Reason.STATE_PATH_INVALID, f"annotation {ANNOTATION_STATE}: {path.mount_path!r:.80} {problem}"
            )
    for path in limits.values():
        problem = path_problem(path.mount_path)
        if problem:
            return Refusal(
                Reason.STATE_PATH_INVALID,
                f"policy {policy.name!r}: spec.state.paths: {path.mount_path!r:.80} {problem}",
            )
    every = {_normal(path.mount_path): path for path in (*annotated, *limits.values())}
    return [
        StatePath(where, every[where].size_limit)
        for where in sorted(every)
        if not any(where != other and _within(where, (other,)) for other in every)
    ]


def path_problem(path: str) -> str:
    """Return why a path cannot be a state root, and the remedy; an empty text if it can."""
    if not path.startswith("/") or _normal(path) == "/":
        return "must be an absolute path below /, such as /workspace"
    if ".." in path.split("/") or re.search(r"[:\x00-\x1f]", path):
        return "must not contain '..', ':' or control characters"
    if _normal(path) in _SYSTEM or _within(_normal(path), _RESERVED):
        return "is a directory of the system or of Savepoint, which a volume would hide; name one of the agent's"
    return ""


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).strip("/")


def _covering(path: str, mounts: Iterable[str]) -> str | None:
    """Return the innermost mount that contains the path."""
    return max((mount for mount in mounts if _within(path, (mount,))), key=len, default=None)


def _contains(outer: str, inner: str) -> bool:
    """Return whether subPath ``outer`` contains subPath ``inner``, both normalised; empty means the whole volume."""
    return not outer or _within(inner, (outer,))


def _within(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(directory.rstrip("/") + "/") for directory in directories)
