"""The configuration hash of an agent: the parts of its container, as its owner wrote it, that old state may not fit.

Pure. It covers image, command, args, environment and the names of mounted ConfigMaps. It covers no value from a Secret,
and nothing that differs from pod to pod (names of generated volumes, tokens, mounts of state).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any


def config_hash(pod: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON of the parts. The pod must be stripped of injected parts."""
    parts = {
        "image": container.get("image"),
        "command": container.get("command") or [],
        "args": container.get("args") or [],
        "env": sorted([item["name"], _origin(item)] for item in container.get("env") or ()),
        "envFrom": [_source(item) for item in container.get("envFrom") or ()],
        "configMaps": _config_maps(pod, container),
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def annotated_hash(annotation: str) -> str:
    """Return the hash in a pod's annotation; empty, which matches nothing, if the annotation holds anything else."""
    return annotation if re.fullmatch(r"[0-9a-f]{64}", annotation) else ""


def _origin(item: Mapping[str, Any]) -> str:
    """Return the literal value or the source of the value; for a Secret only that there is one."""
    source = item.get("valueFrom")
    if not source:
        return f"value:{item.get('value') or ''}"
    if "secretKeyRef" in source:
        return "secret"
    return "from:" + json.dumps(source, sort_keys=True, separators=(",", ":"))


def _source(item: Mapping[str, Any]) -> list[str]:
    kind = "configMapRef" if "configMapRef" in item else "secretRef"
    return [kind, (item.get(kind) or {}).get("name") or "", item.get("prefix") or ""]


def _config_maps(pod: Mapping[str, Any], container: Mapping[str, Any]) -> list[list[str]]:
    names = {volume["name"]: list(_mounted(volume)) for volume in pod["spec"].get("volumes") or ()}
    return sorted(
        [name, mount["mountPath"], mount.get("subPath") or ""]
        for mount in container.get("volumeMounts") or ()
        if not mount["mountPath"].startswith("/var/run/secrets/")  # the API token's own volume, with its CA's ConfigMap
        for name in names.get(mount["name"], ())
    )


def _mounted(volume: Mapping[str, Any]) -> list[str]:
    sources = [volume, *((volume.get("projected") or {}).get("sources") or ())]
    return [source["configMap"].get("name") or "" for source in sources if source.get("configMap")]
