"""Building the project's own images from its Dockerfiles, and loading them into the nodes.

It provides base images, collects wheels on the host, and rebuilds an image only if its inputs have changed. There is no
registry.

A build context is the Dockerfile's folder plus `wheels/` (for images that require it), which includes the repository's
own wheel; a Dockerfile contains `ARG BASE` and `RUN pip install --no-index --find-links /wheels ...`. Where a registry
is available, the same Dockerfile works with BASE left at the published image.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import loader, rootfs, system_images, wheels
from e2e.cluster.command import ClusterError
from e2e.cluster.engine import Engine
from e2e.cluster.nodes import NodeController
from e2e.cluster.paths import Paths
from e2e.cluster.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
PYTHON_BASE = "savepoint.local/python:3.13"
CODER_BASE = "savepoint.local/coder-base:trixie"
_PUBLISHED = {PYTHON_BASE: "python:3.13-slim", CODER_BASE: "debian:trixie"}
_BASES = {PYTHON_BASE: rootfs.PYTHON, CODER_BASE: rootfs.CODER}
_LABEL = "dev.savepoint.inputs"


@dataclass(frozen=True, slots=True)
class Project:
    """One image of this repository."""

    name: str
    folder: str
    base: str = PYTHON_BASE
    wheels: tuple[str, ...] = ()
    """Lock files, or single projects in requirements/dev.lock, whose wheels go into the context's `wheels/`."""
    own_wheel: bool = False
    """True if the repository's own wheel goes there, too."""

    @property
    def dockerfile(self) -> Path:
        return ROOT / self.folder / "Dockerfile"


PROJECTS = (
    Project("savepoint.local/operator:dev", "operator", wheels=("requirements/operator.lock",), own_wheel=True),
    Project("savepoint.local/sidecar:dev", "agent-sidecar", wheels=("requirements/sidecar.lock",), own_wheel=True),
    Project("savepoint.local/researcher:dev", "e2e/agents/researcher", wheels=("numpy",), own_wheel=True),
    Project("savepoint.local/coder:dev", "e2e/agents/coder", base=CODER_BASE),
    Project("savepoint.local/services:dev", "e2e/agents/services"),
)

_SERVERS = ("savepoint.local/services:dev", system_images.VERSITYGW)
"""Images that run on the control plane, which is never drained."""


def build_all(engine: Engine, paths: Paths, steps: Steps) -> tuple[str, ...]:
    """Build every image whose Dockerfile exists and whose inputs have changed; return the names of all images."""
    present = [project for project in PROJECTS if project.dockerfile.exists()]
    for project in PROJECTS:
        if project not in present:
            steps.say(f"{project.name}: skipped, {project.folder}/Dockerfile does not exist")
    if engine.managed:
        for base in dict.fromkeys(project.base for project in present):
            _import_base(engine, paths, steps, base)
    own = wheels.own(ROOT, paths) if any(project.own_wheel for project in present) else None
    for project in present:
        build(engine, paths, steps, project, own)
    _import_versitygw(engine, steps)
    return (*(project.name for project in present), system_images.VERSITYGW)


def build(engine: Engine, paths: Paths, steps: Steps, project: Project, own: Path | None) -> None:
    """Build one image unless the engine has it with the same inputs. Raises ClusterError."""
    with tempfile.TemporaryDirectory(prefix="savepoint-context-") as scratch:
        context = Path(scratch)
        shutil.copytree(
            ROOT / project.folder,
            context,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
        if project.wheels or project.own_wheel:
            folder = context / "wheels"
            folder.mkdir(exist_ok=True)
            for requirement in project.wheels:
                for wheel in wheels.collect(ROOT, requirement, paths):
                    shutil.copyfile(wheel, folder / wheel.name)
            if project.own_wheel and own is not None:
                shutil.copyfile(own, folder / own.name)
        base = project.base if engine.managed else _PUBLISHED[project.base]
        key = _key(context, engine, base)
        if _label(engine, project.name) == key:
            steps.say(f"{project.name}: unchanged")
            return
        with steps.step(f"building {project.name}"):
            engine(
                "build",
                "--quiet",
                "--build-arg",
                f"BASE={base}",
                "--label",
                f"{_LABEL}={key}",
                "--tag",
                project.name,
                context,
                timeout=900,
            )


def load(engine: Engine, paths: Paths, steps: Steps, names: tuple[str, ...] = ()) -> None:
    """Load images into the nodes that run them, unless they are there already. Without names: all that exist."""
    wanted = names or tuple(
        name for name in (*(project.name for project in PROJECTS), system_images.VERSITYGW) if engine.has_image(name)
    )
    if not wanted:
        raise ClusterError("no image to load: run `python -m e2e.cluster images`")
    controller = NodeController(engine, paths)
    servers = tuple(name for name in wanted if name in _SERVERS)
    others = tuple(name for name in wanted if name not in _SERVERS)
    for group, nodes in ((servers, (controller.control_plane,)), (others, controller.workers())):
        loader.load(engine, steps, group, nodes)


def _import_base(engine: Engine, paths: Paths, steps: Steps, base: str) -> None:
    recipe = _BASES[base]
    pinned = f"{base.rpartition(':')[0]}:{recipe.key}"
    if not engine.has_image(pinned):
        with steps.step(f"importing {base}"):
            engine("import", "-c", 'CMD ["/bin/sh"]', rootfs.make(recipe, paths), pinned, timeout=300)
    engine("tag", pinned, base)


def _import_versitygw(engine: Engine, steps: Steps) -> None:
    image = system_images.versitygw()
    binary = image.files["usr/bin/versitygw"]
    pinned = f"{image.name.rpartition(':')[0]}:{binary.parents[1].name}"
    if not engine.has_image(pinned):
        with steps.step(f"importing {image.name}"):
            system_images.import_one(engine, image)
            engine("tag", image.name, pinned)
    engine("tag", pinned, image.name)


def _label(engine: Engine, name: str) -> str:
    """Return the key that the image was built with; empty if the engine lacks the image."""
    if not engine.has_image(name):
        return ""
    return engine("image", "inspect", "--format", f'{{{{index .Config.Labels "{_LABEL}"}}}}', name)


def _key(context: Path, engine: Engine, base: str) -> str:
    """Return a digest of everything that the image is built from."""
    digest = hashlib.sha256(base.encode())
    if engine.managed:
        digest.update(engine("image", "inspect", "--format", "{{.Id}}", base).encode())
    for path in _files(context):
        digest.update(f"{path.relative_to(context)}\0{path.stat().st_mode & 0o777:o}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _files(context: Path) -> Iterator[Path]:
    return (path for path in sorted(context.rglob("*")) if path.is_file())
