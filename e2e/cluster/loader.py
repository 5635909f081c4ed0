"""Loading the engine's images into the containerd of nodes.

It does what `kind load` does, in less than half the time: all nodes at once, and only images that a node lacks. It does
not remove anything: an image whose name was reused stays in the node.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from e2e.cluster.command import ClusterError
from e2e.cluster.engine import Engine
from e2e.cluster.steps import Steps

_IMPORT = (
    "ctr",
    "--namespace=k8s.io",
    "images",
    "import",
    "--all-platforms",
    "--digests",
    "--snapshotter=overlayfs",
    "-",
)


def load(engine: Engine, steps: Steps, names: Sequence[str], nodes: Sequence[str]) -> None:
    """Load the images into the nodes. Raises ClusterError."""
    wanted = {name: engine("image", "inspect", "--format", "{{.Id}}", name) for name in names}
    missing_in = {node: _missing(engine, node, wanted) for node in nodes}
    to_load = [name for name in names if any(name in missing for missing in missing_in.values())]
    if not to_load:
        if names:
            steps.say(f"already loaded: {' '.join(names)}")
        return
    # The archive holds layers that images share once, so one archive for all nodes is smaller than one for each.
    with steps.step(f"loading {' '.join(to_load)}"), tempfile.TemporaryDirectory(prefix="savepoint-load-") as scratch:
        archive = Path(scratch) / "images.tar"
        engine("save", "--output", archive, *to_load, timeout=300)
        _import(engine, archive, [node for node, missing in missing_in.items() if missing])


def _missing(engine: Engine, node: str, wanted: dict[str, str]) -> set[str]:
    listed = json.loads(engine("exec", node, "crictl", "images", "--output", "json"))["images"]
    present = {tag: image["id"] for image in listed for tag in image.get("repoTags", ())}
    return {name for name, identifier in wanted.items() if present.get(name) != identifier}


def _import(engine: Engine, archive: Path, nodes: Iterable[str]) -> None:
    imports: list[tuple[str, subprocess.Popen[str]]] = []
    for node in nodes:
        with archive.open("rb") as content:
            process = subprocess.Popen(
                [engine.program, "exec", "--interactive", node, *_IMPORT],
                stdin=content,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=engine.env,
            )
        imports.append((node, process))
    failed = []
    for node, process in imports:
        _, errors = process.communicate()
        if process.returncode != 0:
            failed.append(f"{node}: {errors.strip()}")
    if failed:
        raise ClusterError(f"loading images failed: {'; '.join(failed)}")
