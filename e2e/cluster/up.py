"""`up` and `down`: the order of the steps, and the announcement of what they install and change.

The steps themselves are in the other modules.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from e2e.cluster import bootstrap, cleanup, engine, kind, lock, node_image, programs, rootfs, system_images
from e2e.cluster.command import ClusterError
from e2e.cluster.engine import Engine
from e2e.cluster.nodes import NodeController
from e2e.cluster.paths import Paths
from e2e.cluster.steps import Steps

DEBIAN = (*engine.PACKAGES, "mmdebstrap", *system_images.DEBIAN)
_RECIPES = (rootfs.NODE, rootfs.PYTHON, rootfs.CODER)


def up(paths: Paths, steps: Steps, *, fast: bool = True, image: str | None = None) -> Engine:
    """Start the cluster and return its engine. Idempotent: takes seconds if the cluster runs already.

    Args:
        paths: Where the cluster keeps its files.
        steps: Where progress is shown.
        fast: Detect lost nodes within seconds instead of Kubernetes' minute.
        image: The kind node image if an external engine is running; None for the one of the pinned kind.

    Raises:
        ClusterError, ProgramError, BootstrapError: With the cause and the remedy.
    """
    paths.make()
    with lock.exclusive(paths.cache / "cluster.lock", steps.say):
        cleanup.kill_orphans(paths)  # we hold the lock, so no command is waiting for them
        managed = engine.find_managed(paths)
        if managed is None and (external := engine.find_external()) is not None:
            return _with_published_image(external, paths, steps, fast=fast, image=image)
        if managed is not None and kind.is_ready(paths):
            _warn_if_stale(managed, steps)
            _report_running(paths, steps)
            return managed
        if image is not None:
            raise ClusterError(
                "--node-image needs a container engine that pulls it, and `docker info` finds none: omit the option, "
                "and the node image is built here"
            )
        return _with_own_image(paths, steps, fast=fast)


def down(paths: Paths, steps: Steps) -> None:
    """Remove the cluster and the suite's engine and what they left on the machine; keep the cache. Safe in any state.

    Raises ClusterError with what is left.
    """
    with lock.exclusive(paths.cache / "cluster.lock", steps.say):
        if paths.run.exists() and engine.find_managed(paths) is None and (external := engine.find_external()):
            with steps.step("deleting the cluster"):
                kind.delete(external, paths)
        with steps.step("stopping the engine and cleaning up"):
            remaining = engine.stop(paths)
        if remaining:
            raise ClusterError("\n  ".join(("not everything could be removed; run `down` again. Left:", *remaining)))


def plan(paths: Paths) -> list[str]:
    """Return lines that describe what `up` would install and change on this machine. Changes nothing itself."""
    managed = engine.find_managed(paths)
    if managed is None and (external := engine.find_external()) is not None:
        return _plan_with_published_image(external)
    if managed is not None and kind.is_ready(paths):
        return [f"the cluster is running, so nothing is installed: KUBECONFIG={paths.kubeconfig}"]
    return _plan_with_own_image(paths)


def _with_published_image(external: Engine, paths: Paths, steps: Steps, *, fast: bool, image: str | None) -> Engine:
    for line in _plan_with_published_image(external):
        steps.say(line)
    programs.build(("kind", "kubectl"))
    if kind.exists(external) and _repair(external, paths, steps):
        return external
    with steps.step("creating the cluster"):
        kind.create(external, paths, image, kind.FAST if fast else None)
    _report_running(paths, steps)
    return external


def _with_own_image(paths: Paths, steps: Steps, *, fast: bool) -> Engine:
    for line in _plan_with_own_image(paths):
        steps.say(line)
    if os.geteuid() != 0:
        raise ClusterError("`docker info` finds no container engine, and installing and starting one requires root")
    with steps.step("installing Debian packages"):
        bootstrap.ensure(DEBIAN)
    with _in_background(steps, _downloads(paths, steps)) as downloads:
        if _missing_programs():
            with steps.step("building programs"):
                programs.build(node_image.PROGRAMS)
        for download in downloads:
            download.result()
    with steps.step("starting the engine"):
        managed = engine.start(paths)
    if kind.exists(managed) and _repair(managed, paths, steps):
        return managed
    if not managed.has_image(node_image.name_of()):
        with steps.step("building the node image"):
            node_image.build(managed, paths)
    with steps.step("creating the cluster"):
        kind.create(managed, paths, node_image.name_of(), kind.FAST if fast else None)
    _report_running(paths, steps)
    return managed


def _repair(found: Engine, paths: Paths, steps: Steps) -> bool:
    """Repair a cluster that exists but is not Ready: nodes killed by a test, or an interrupted creation.

    Returns False if that failed; the cluster has been deleted then.
    """
    nodes = NodeController(found, paths)
    try:
        if not paths.kubeconfig.exists() or len(nodes.names()) != 1 + kind.WORKERS:
            raise ClusterError("its creation was interrupted")
        with steps.step("repairing the nodes"):
            nodes.heal(seconds=60)
            kind.wait(paths)
    except ClusterError as error:
        steps.say(f"the cluster cannot be repaired: {str(error).splitlines()[0]}; recreating it")
        kind.delete(found, paths)
        return False
    _warn_if_stale(found, steps)
    _report_running(paths, steps)
    return True


def _warn_if_stale(found: Engine, steps: Steps) -> None:
    if found.managed and not found.has_image(node_image.name_of()):
        steps.say("note: the sources of the node image have changed; run `down` and `up` to apply the changes")


def _report_running(paths: Paths, steps: Steps) -> None:
    steps.say(f"the cluster is running: KUBECONFIG={paths.kubeconfig}")


def _missing_programs() -> list[str]:
    return [name for name in node_image.PROGRAMS if not programs.path_of(name).exists()]


def _missing_recipes(paths: Paths) -> list[rootfs.Recipe]:
    return [recipe for recipe in _RECIPES if not rootfs.tar_of(recipe, paths).exists()]


def _downloads(paths: Paths, steps: Steps) -> list[Callable[[], object]]:
    """Return jobs that wait for the network, to be run while the compilers keep the cores busy."""

    def fetch(recipe: rootfs.Recipe) -> Callable[[], object]:
        def job() -> None:
            with steps.step(f"downloading the Debian root file system: {recipe.name}"):
                rootfs.make(recipe, paths)

        return job

    return [fetch(recipe) for recipe in _missing_recipes(paths)]


@contextmanager
def _in_background(steps: Steps, jobs: list[Callable[[], object]]) -> Iterator[list[Future[object]]]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            yield [pool.submit(job) for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if threading.active_count() > 1:
                steps.say("waiting for the downloads in progress…")
            raise


def _plan_with_published_image(external: Engine) -> list[str]:
    return [
        f"{external.program} is running: kind's published node image is used; only kind and kubectl are installed",
        "  started until `down`: three containers as nodes, on kind's network",
    ]


def _plan_with_own_image(paths: Paths) -> list[str]:
    packages = bootstrap.missing(DEBIAN) if shutil.which("dpkg-query") else list(DEBIAN)
    missing = _missing_programs()
    recipes = [recipe.name for recipe in _missing_recipes(paths)]
    lines = [
        "`docker info` finds no container engine: one is installed here, and the node image is built",
        f"  Debian packages to install, which remain installed: {' '.join(packages) or 'none, all present'}",
        f"  programs to build into {paths.cache}: {' '.join(missing) or 'none, all cached'}",
        f"  Debian root file systems to download: {' '.join(recipes) or 'none, all cached'}",
        f"  started until `down`: dockerd with its state in {paths.run}, three containers as nodes, a bridge, links",
        "  changed until `down`: docker's packet filter chains, the FORWARD policy, net.ipv4.ip_forward, cgroups",
    ]
    if engine.lacks_sys_resource():
        lines.append("  root lacks CAP_SYS_RESOURCE here: a wrapper around runc removes it from containers' requests")
    return lines
