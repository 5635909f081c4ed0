"""Root file systems from Debian's archive, made by mmdebstrap and kept as tar files in the cache.

node_image.py and images.py import them into the engine. A recipe's key covers everything that determines the content
except the state of the archive: delete the tar file to get newer packages.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import bootstrap
from e2e.cluster.command import ClusterError, run
from e2e.cluster.paths import Paths

PIP = "pip==25.3"
_EXCLUDED = ("doc", "man", "info", "locale", "lintian", "bug")
# Lets the same Dockerfile work on this base and on the published python:3.13-slim.
_LIKE_PYTHON_IMAGE = (
    'rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED',
    'ln -sf /usr/bin/python3 "$1/usr/local/bin/python"',
    'ln -sf /usr/bin/python3 "$1/usr/local/bin/python3"',
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A Debian suite, the packages on top of its minimal base, and shell lines to run on the result ($1)."""

    name: str
    suite: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...] = ()
    pip: str = ""
    """Version of pip to unpack into the result; Debian's package of pip is four times as large, with dependencies."""

    @property
    def key(self) -> str:
        """Digest of the recipe, twelve hex digits."""
        text = repr((self.suite, self.packages, self.hooks, self.pip, _EXCLUDED))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


NODE = Recipe(
    "node",
    "bookworm",  # its systemd runs on cgroup v1 and v2
    (
        "systemd",
        "systemd-sysv",
        "dbus",
        "conntrack",
        "iptables",
        "nftables",
        "iproute2",
        "ethtool",
        "util-linux",
        "mount",
        "kmod",
        "libseccomp2",
        "e2fsprogs",
        "jq",
        "procps",
        "bash",
        "ca-certificates",
        "curl",
        "hostname",
        "pigz",
        "busybox",
    ),
)
PYTHON = Recipe("python", "trixie", ("python3", "ca-certificates"), _LIKE_PYTHON_IMAGE, PIP)
CODER = Recipe("coder", "trixie", ("git", "sqlite3", "busybox"))


def tar_of(recipe: Recipe, paths: Paths) -> Path:
    """Return the path of the recipe's tar file, whether it exists or not."""
    return paths.cache / "rootfs" / f"{recipe.name}-{recipe.key}.tar"


def make(recipe: Recipe, paths: Paths) -> Path:
    """Return the recipe's tar file; create it if it is missing. Raises ClusterError, BootstrapError."""
    target = tar_of(recipe, paths)
    if target.exists():
        return target
    bootstrap.ensure(("mmdebstrap",))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.half.tar")
    with tempfile.TemporaryDirectory(prefix="savepoint-rootfs-") as scratch:
        hooks = list(recipe.hooks)
        if recipe.pip:
            hooks += _pip_hooks(recipe.pip, Path(scratch))
        try:
            run(
                [
                    "mmdebstrap",
                    "--quiet",
                    "--mode=root",
                    "--variant=minbase",
                    "--aptopt=APT::Install-Recommends false",
                    "--aptopt=Acquire::Retries 3",
                    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED),
                    f"--include={','.join(recipe.packages)}",
                    *(f"--customize-hook={line}" for line in hooks),
                    recipe.suite,
                    partial,
                ],
                env={**os.environ, "TMPDIR": scratch},
                timeout=1200,
            )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _pip_hooks(requirement: str, scratch: Path) -> list[str]:
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement], timeout=300)
    wheels = list(scratch.glob("pip-*.whl"))
    if len(wheels) != 1:
        raise ClusterError(f"pip download {requirement} produced {len(wheels)} wheels instead of one")
    site = scratch / "site"
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(site)
    script = scratch / "pip"
    script.write_text('#!/bin/sh\nexec /usr/bin/python3 -m pip "$@"\n')
    script.chmod(0o755)
    return [
        f'mkdir -p "$1"/usr/local/lib/python3.13/dist-packages && cp -r {site}/. '
        '"$1"/usr/local/lib/python3.13/dist-packages/',
        f'cp {script} "$1"/usr/local/bin/pip && cp {script} "$1"/usr/local/bin/pip3',
    ]
