"""Paths of the local cluster: a cache that outlives it, and a run directory that does not.

Names only; nothing is created except by ``make``.

    CACHE/                      ${SAVEPOINT_CACHE or $XDG_CACHE_HOME/savepoint or ~/.cache/savepoint}
        programs/               binaries (programs.py)
        rootfs/                 root file systems as tar files, one per key
        wheels/                 wheels for the project's own images
        kind/                   files of the pinned kind module
        engine/                 dockerd's data: images, and volumes while a cluster runs
        timings.json            seconds that each step took last time
    RUN/                        $SAVEPOINT_RUN or /run/savepoint; removed by `down`
        docker.sock, dockerd.pid, dockerd.log, exec/, runtime, kubeconfig, before.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.programs import cache_root


@dataclass(frozen=True, slots=True)
class Paths:
    """The two directories, and the paths below them."""

    cache: Path
    run: Path

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    @property
    def engine_data(self) -> Path:
        return self.cache / "engine"

    @property
    def socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def pidfile(self) -> Path:
        return self.run / "dockerd.pid"

    @property
    def state_before(self) -> Path:
        """The machine's state before the engine started, for `down`."""
        return self.run / "before.json"

    def make(self) -> None:
        """Create both directories."""
        self.cache.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(parents=True, exist_ok=True)


def default_paths() -> Paths:
    """Return the paths that the environment variables select."""
    return Paths(cache_root(), Path(os.environ.get("SAVEPOINT_RUN") or "/run/savepoint").absolute())
