"""`up`: from whatever the machine is now to a cluster that works.

What it is: the order of the steps, and what it says before it changes anything. What it is not: the steps.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from e2e.cluster import bootstrap, engine, kind, leftovers, lock, node_image, programs, rootfs, system_images
from e2e.cluster.command import ClusterError
from e2e.cluster.engine import Engine
from e2e.cluster.nodes import NodeController
from e2e.cluster.paths import Paths
from e2e.cluster.steps import Steps

DEBIAN = (*engine.PACKAGES, "mmdebstrap", *system_images.DEBIAN)


def up(paths: Paths, steps: Steps, *, fast: bool = True, image: str | None = None) -> Engine:
    """Start the cluster and return its engine. Idempotent: takes seconds if the cluster runs already.

    Args:
        paths: Where the cluster keeps its files.
        steps: Where progress is shown.
        fast: Notice lost nodes in seconds instead of Kubernetes' minute.
        image: The kind node image, where the machine's own engine answers; None: the one of the pinned kind.

    Raises:
        ClusterError, ProgramError, BootstrapError: With the cause and the remedy.
    """
    paths.make()
    with lock.held(paths.cache / "cluster.lock", steps.say):
        leftovers.end_orphans(paths)  # we hold the lock, so nobody waits for them
        found = engine.running(paths)
        if found is None and (of_the_machine := engine.of_the_machine()) is not None:
            return _with_published_image(of_the_machine, paths, steps, fast=fast, image=image)
        if found is not None and kind.answers(paths):
            _say_if_stale(found, steps)
            steps.say(f"the cluster is up: KUBECONFIG={paths.kubeconfig}")
            return found
        if image is not None:
            raise ClusterError("--node-image needs a container engine that pulls it; here the node image is built")
        return _with_own_image(paths, steps, fast=fast)


def down(paths: Paths, steps: Steps) -> None:
    """Remove the cluster and our engine with all that they left on the machine; the cache stays. Safe in any state.

    Raises ClusterError with what is still there.
    """
    with lock.held(paths.cache / "cluster.lock", steps.say):
        if paths.run.exists() and engine.running(paths) is None and (other := engine.of_the_machine()) is not None:
            with steps.step("delete the cluster"):
                kind.delete(other, paths)
        with steps.step("stop the engine and clean up"):
            left = engine.stop(paths)
        if left:
            raise ClusterError("\n  ".join(("this is still there, and `down` may be run again:", *left)))


def plan(paths: Paths) -> list[str]:
    """What `up` would install and change on this machine now, in lines. It changes nothing itself."""
    found = engine.running(paths)
    if found is None and (of_the_machine := engine.of_the_machine()) is not None:
        return _plan_with_published_image(of_the_machine)
    if found is not None and kind.answers(paths):
        return [f"the cluster is up, and nothing is installed: KUBECONFIG={paths.kubeconfig}"]
    return _plan_with_own_image(paths)


def _with_published_image(found: Engine, paths: Paths, steps: Steps, *, fast: bool, image: str | None) -> Engine:
    for line in _plan_with_published_image(found):
        steps.say(line)
    programs.build(("kind", "kubectl"))
    if kind.exists(found) and _mended(found, paths, steps):
        return found
    with steps.step("create the cluster"):
        kind.create(found, paths, image, kind.FAST if fast else None)
    steps.say(f"the cluster is up: KUBECONFIG={paths.kubeconfig}")
    return found


def _with_own_image(paths: Paths, steps: Steps, *, fast: bool) -> Engine:
    for line in _plan_with_own_image(paths):
        steps.say(line)
    if os.geteuid() != 0:
        raise ClusterError("no engine answers `docker info` here, and installing and starting one needs root")
    with steps.step("install Debian packages"):
        bootstrap.ensure(DEBIAN)
    with _beside(steps, _downloads(paths, steps)) as downloads:
        if _missing_programs():
            with steps.step("build programs"):
                programs.build(node_image.PROGRAMS)
        for download in downloads:
            download.result()
    with steps.step("start the engine"):
        started = engine.start(paths)
    if kind.exists(started) and _mended(started, paths, steps):
        return started
    if not started.has_image(node_image.name_of()):
        with steps.step("build the node image"):
            node_image.build(started, paths)
    with steps.step("create the cluster"):
        kind.create(started, paths, node_image.name_of(), kind.FAST if fast else None)
    steps.say(f"the cluster is up: KUBECONFIG={paths.kubeconfig}")
    return started


def _mended(found: Engine, paths: Paths, steps: Steps) -> bool:
    """A cluster that exists but does not answer: nodes that a test has killed, or a creation that broke off.

    False when it could not be mended; then it has been deleted.
    """
    nodes = NodeController(found, paths)
    try:
        if not paths.kubeconfig.exists() or len(nodes.names()) != 1 + kind.WORKERS:
            raise ClusterError("its creation was cut short")
        with steps.step("mend the nodes"):
            nodes.heal(seconds=60)
            kind.wait(paths)
    except ClusterError as error:
        steps.say(f"could not be mended, so it is made anew: {str(error).splitlines()[0]}")
        kind.delete(found, paths)
        return False
    _say_if_stale(found, steps)
    steps.say(f"the cluster is up: KUBECONFIG={paths.kubeconfig}")
    return True


def _say_if_stale(found: Engine, steps: Steps) -> None:
    if found.ours and not found.has_image(node_image.name_of()):
        steps.say("note: the node image's sources have changed since; `down` and `up` take them in")


def _missing_programs() -> list[str]:
    return [name for name in node_image.PROGRAMS if not programs.path_of(name).exists()]


def _downloads(paths: Paths, steps: Steps) -> list[Callable[[], object]]:
    """What waits for the network while the compilers keep the cores busy."""

    def fetch(recipe: rootfs.Recipe) -> Callable[[], object]:
        def job() -> None:
            with steps.step(f"Debian root file system: {recipe.name}"):
                rootfs.make(recipe, paths)

        return job

    return [
        fetch(recipe)
        for recipe in (rootfs.NODE, rootfs.PYTHON, rootfs.CODER)
        if not rootfs.tar_of(recipe, paths).exists()
    ]


@contextmanager
def _beside(steps: Steps, jobs: list[Callable[[], object]]) -> Iterator[list[Future[object]]]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            yield [pool.submit(job) for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if threading.active_count() > 1:
                steps.say("waiting for the downloads under way")
            raise


def _plan_with_published_image(found: Engine) -> list[str]:
    return [
        f"{found.program} answers: kind's published node image is used, nothing is installed but kind and kubectl",
        "  to be started until `down`: three containers as nodes, on a network of kind's",
    ]


def _plan_with_own_image(paths: Paths) -> list[str]:
    packages = bootstrap.missing(DEBIAN) if shutil.which("dpkg-query") else list(DEBIAN)
    missing = _missing_programs()
    recipes = [
        recipe.name
        for recipe in (rootfs.NODE, rootfs.PYTHON, rootfs.CODER)
        if not rootfs.tar_of(recipe, paths).exists()
    ]
    lines = [
        "no engine answers `docker info`: a cluster of our own will be made here",
        f"  Debian packages to install, which stay: {' '.join(packages) or 'none, all present'}",
        f"  programs to build into {paths.cache}: {' '.join(missing) or 'none, all cached'}",
        f"  Debian root file systems to fetch: {' '.join(recipes) or 'none, all cached'}",
        f"  to be started: dockerd with its state in {paths.run}, three containers as nodes, a bridge and their links",
        "  to be changed until `down`: packet filter chains of docker, FORWARD policy, net.ipv4.ip_forward, cgroups",
    ]
    if engine.lacks_sys_resource():
        lines.append("  this root lacks CAP_SYS_RESOURCE: a wrapper around runc takes it from what containers ask for")
    return lines
