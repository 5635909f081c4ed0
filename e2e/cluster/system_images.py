"""The images of the control plane and of the cluster's own services, each with one binary that we built.

They are imported into the engine under the names that kubeadm and containerd request; no registry is involved.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster import bootstrap
from e2e.cluster.command import ClusterError, output, pipe, run
from e2e.cluster.engine import Engine
from e2e.cluster.programs import program

DEBIAN = ("gcc", "libc6-dev")
BUSYBOX = "savepoint.local/busybox:dev"
LOCAL_PATH = "savepoint.local/local-path-provisioner:dev"
VERSITYGW = "savepoint.local/versitygw:dev"
_COLLECT = Path(__file__).parent / "node" / "collect.sh"
_FILTERS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
_PROXY_FILES = (*(f"/usr/sbin/{name}" for name in (*_FILTERS, "nft", "conntrack")), "/usr/lib/*/xtables/*.so")
_PROXY_LINKS = {f"usr/local/sbin/{name}": "/usr/sbin/xtables-nft-multi" for name in _FILTERS}
"""Links that replace Debian's links in /etc, which select the nftables variant."""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """Contents of one image: files and links by their path in it, its entrypoint, and a tar file to start from."""

    name: str
    files: Mapping[str, Path]
    entrypoint: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    base: Path | None = None


def kubernetes_names(version: str) -> tuple[str, ...]:
    """Return the images that kubeadm of this version requires."""
    listed = output([program("kubeadm"), "config", "images", "list", "--kubernetes-version", version])
    return tuple(line for line in listed.splitlines() if "/" in line)


def import_all(engine: Engine, version: str, pause: str, node_base: str) -> tuple[str, ...]:
    """Import every image that the node image contains; return their names."""
    bootstrap.ensure(DEBIAN)
    with tempfile.TemporaryDirectory(prefix="savepoint-images-") as scratch:
        images = _images(engine, version, pause, node_base, Path(scratch))
        for image in images:
            import_one(engine, image)
    return tuple(image.name for image in images)


def import_one(engine: Engine, image: Image) -> None:
    """Build the image's file system and import it into the engine."""
    with tempfile.TemporaryDirectory(prefix="savepoint-image-") as scratch:
        archive = Path(scratch) / "image.tar"
        _pack(image, archive)
        entrypoint = ", ".join(f'"{argument}"' for argument in image.entrypoint)
        engine("import", "-c", f"ENV {_PATH}", "-c", f"ENTRYPOINT [{entrypoint}]", archive, image.name, timeout=120)


def versitygw() -> Image:
    """Return the image of the tests' S3 server."""
    return Image(VERSITYGW, {"usr/bin/versitygw": program("versitygw")}, ("/usr/bin/versitygw",))


def _images(engine: Engine, version: str, pause: str, node_base: str, scratch: Path) -> list[Image]:
    images = [_busybox(engine, node_base, scratch)]
    provisioner = program("local-path-provisioner")
    images.append(Image(LOCAL_PATH, {"usr/bin/local-path-provisioner": provisioner}, ("local-path-provisioner",)))
    images.append(Image(pause, {"pause": _pause(scratch)}, ("/pause",)))
    for name in kubernetes_names(version):
        short = name.rpartition("/")[2].partition(":")[0]
        if short == "pause":
            continue  # containerd's configuration names the pause image
        if short == "coredns":
            images.append(Image(name, {"coredns": program("coredns")}, ("/coredns",)))
            continue
        files, entrypoint = {f"usr/local/bin/{short}": program(short)}, (f"/usr/local/bin/{short}",)
        if short == "kube-proxy":
            base = _collect(engine, node_base, scratch / "proxy.tar", *_PROXY_FILES)
            images.append(Image(name, files, entrypoint, _PROXY_LINKS, base))
        else:
            images.append(Image(name, files, entrypoint))
    return images


def _busybox(engine: Engine, node_base: str, scratch: Path) -> Image:
    # The node's busybox, whose version is known, not the machine's. (Its wget crashes on -T; use `timeout`.)
    base = _collect(engine, node_base, scratch / "busybox.tar", "/usr/bin/busybox")
    applets = engine("run", "--rm", "--entrypoint", "busybox", node_base, "--list").split()
    links = {f"usr/bin/{name}": "busybox" for name in applets if name != "busybox"}
    return Image(BUSYBOX, {}, ("/bin/sh",), links, base)


def _pause(scratch: Path) -> Path:
    """Compile the process that holds a pod's namespaces; it only sleeps and reaps orphans."""
    source = Path(__file__).parent / "node" / "pause.c"
    binary = scratch / "pause"
    run(["gcc", "-Os", "-static", "-s", "-Wall", "-o", binary, source])
    return binary


def _collect(engine: Engine, node_base: str, archive: Path, *patterns: str) -> Path:
    """Write a tar of files in the node image and of the libraries that they load; return its path."""
    command = [engine.program, "run", "--rm", "--interactive", "--entrypoint", "bash", node_base]
    script = f"set -- {' '.join(patterns)}\n{_COLLECT.read_text()}"
    with archive.open("wb") as target:
        done = subprocess.run(
            [*command, "-s"],
            input=script.encode(),
            stdout=target,
            stderr=subprocess.PIPE,
            env=engine.env,
            check=False,
        )
    if done.returncode != 0:
        raise ClusterError(f"collecting {' '.join(patterns)} failed:\n{done.stderr.decode(errors='replace')}")
    return archive


def _pack(image: Image, archive: Path) -> None:
    if image.base is not None:
        shutil.copyfile(image.base, archive)
    with tarfile.open(archive, "a" if image.base is not None else "w") as tar:
        present = set(tar.getnames())
        for path in ("tmp", "run"):
            if path not in present and f"./{path}" not in present:
                folder = tarfile.TarInfo(path)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
                tar.addfile(folder)
        for path, source in image.files.items():
            member = tar.gettarinfo(source, path)
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mode = 0o755
            with source.open("rb") as content:
                tar.addfile(member, content)
        for path, target in image.links.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)


def save_into(engine: Engine, names: Sequence[str], container: str) -> None:
    """Import images of the engine, pinned, into the containerd that runs in one of its containers."""
    importer = ("ctr", "--namespace=k8s.io", "images", "import", "--label=io.cri-containerd.pinned=pinned")
    pipe(
        [engine.program, "save", *names],
        [engine.program, "exec", "-i", container, *importer, "--all-platforms", "--no-unpack", "--digests", "-"],
        env={**os.environ, **engine.env},
    )
