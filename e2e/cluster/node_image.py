"""The node image for machines that cannot reach a registry, built the way kind builds its own.

It consists of Debian's root file system, the files of the kind module, the programs that the suite built, and the
system images inside it. The image stays in the data of the suite's engine. Its name contains a key over everything it
is built from; if any of that changes, a new image is built and the old one removed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from pathlib import Path

from e2e.cluster import kind_files, rootfs, system_images
from e2e.cluster.command import ClusterError, output
from e2e.cluster.engine import Engine
from e2e.cluster.paths import Paths
from e2e.cluster.programs import path_of, program

KUBERNETES = "v1.37.2"
REPOSITORY = "savepoint.local/node"
_HERE = Path(__file__).parent
_NODE_PROGRAMS = {
    "usr/bin": ("kubeadm", "kubelet", "kubectl"),
    "usr/local/bin": ("containerd", "containerd-shim-runc-v2", "ctr", "crictl"),
    "usr/local/sbin": ("runc",),
    "opt/cni/bin": ("ptp", "host-local", "portmap", "loopback"),
}
_IMAGE_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "etcd",
    "coredns",
    "local-path-provisioner",
)
PROGRAMS = (*(name for names in _NODE_PROGRAMS.values() for name in names), *_IMAGE_PROGRAMS, "kind")
"""Programs that must be built before the image."""
_OWN_FILES = {
    "usr/local/bin/savepoint-entrypoint": ("node/entrypoint.sh", 0o755),
    "usr/local/bin/savepoint-network": ("node/network.sh", 0o755),
    "etc/systemd/system/savepoint-network.service": ("node/savepoint-network.service", 0o644),
    "kind/manifests/default-cni.yaml": ("manifests/network.yaml", 0o644),
    "kind/manifests/default-storage.yaml": ("manifests/storage.yaml", 0o644),
    "prepare.sh": ("node/prepare.sh", 0o755),
}


def name_of() -> str:
    """Return the name of the image, with its key."""
    digest = hashlib.sha256(f"{KUBERNETES} {rootfs.NODE.key}".encode())
    for part in sorted(PROGRAMS):
        digest.update(f"{path_of(part).parents[1].name}/{part}\0".encode())
    own = [path for folder in ("node", "manifests") for path in sorted((_HERE / folder).iterdir()) if path.is_file()]
    for path in (*own, Path(__file__), Path(system_images.__file__)):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"{REPOSITORY}:{digest.hexdigest()[:12]}"


def build(engine: Engine, paths: Paths) -> str:
    """Build the image unless the engine has it; return its name. Raises ClusterError, ProgramError, BootstrapError."""
    name = name_of()
    if engine.has_image(name):
        return name
    files = kind_files.fetch(paths)
    base = f"{name}-base"
    root = f"savepoint.local/rootfs-node:{rootfs.NODE.key}"
    if not engine.has_image(root):
        engine("import", rootfs.make(rootfs.NODE, paths), root, timeout=300)
    with tempfile.TemporaryDirectory(prefix="savepoint-node-", dir=paths.cache) as scratch:
        _write_context(Path(scratch), files)
        engine("build", "--quiet", "--build-arg", f"BASE={root}", "--tag", base, scratch, timeout=600)
    images = system_images.import_all(engine, KUBERNETES, kind_files.pause_image(files), base)
    _add_images(engine, base, name, images)
    _remove_older(engine, name, (*images, base))
    return name


def _write_context(context: Path, files: Path) -> None:
    """Write the build context: the Dockerfile, and a folder of everything that is copied to the image's root."""
    shutil.copyfile(_HERE / "node" / "Dockerfile", context / "Dockerfile")
    root = context / "rootfs"
    shutil.copytree(files, root)
    for path, (source, mode) in _OWN_FILES.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_HERE / source, target)
        target.chmod(mode)
    for folder, names in _NODE_PROGRAMS.items():
        for name in names:
            target = root / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(program(name).resolve(), target)
            target.chmod(0o755)
    (root / "kind" / "version").write_text(KUBERNETES)


def _add_images(engine: Engine, base: str, name: str, images: tuple[str, ...]) -> None:
    """Commit the base as the node image, after importing the system images into its containerd."""
    container = engine(
        "run", "--detach", "--privileged", "--security-opt", "seccomp=unconfined", "--entrypoint", "sleep", base, "3600"
    )
    try:
        engine("exec", "--detach", container, "sh", "-c", "exec containerd >/dev/null 2>&1")
        _wait_for_containerd(engine, container)
        system_images.save_into(engine, images, container)
        engine("exec", container, "pkill", "containerd")
        time.sleep(1)  # containerd flushes its database when it ends
        engine(
            "commit",
            "--change",
            'ENTRYPOINT ["/usr/local/bin/savepoint-entrypoint", "/sbin/init"]',
            container,
            name,
            timeout=600,
        )
    finally:
        engine("rm", "--force", "--volumes", container)


def _wait_for_containerd(engine: Engine, container: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            # ctr has no timeout while the socket is missing
            engine("exec", container, "sh", "-c", "test -S /run/containerd/containerd.sock && ctr version")
            return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _remove_older(engine: Engine, name: str, temporary: tuple[str, ...]) -> None:
    """Remove older node images and temporary ones; the system images remain only inside the node image."""
    listed = output(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY], env=engine.env)
    kept = {name, f"{name}-base", system_images.BUSYBOX}
    obsolete = [image for image in (*listed.splitlines(), *temporary) if image not in kept]
    if obsolete:
        engine("image", "rm", "--force", *dict.fromkeys(obsolete))
