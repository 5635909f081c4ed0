"""The container engine: an external one if docker or podman is running, otherwise a dockerd that the suite manages.

Finds, starts and stops it, and provides the environment in which `docker` and `kind` reach it. Packages are installed
by bootstrap.py, and cleanup.py removes what the engine leaves on the machine.

The suite's dockerd has its own socket, data, state and pid file, and no default bridge; its containers are in a cgroup
of their own. It runs in the machine's network namespace, so kubectl reaches the cluster directly.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import cleanup
from e2e.cluster.command import ClusterError, run
from e2e.cluster.paths import Paths
from e2e.cluster.process import alive, terminate

PACKAGES = ("docker.io", "iptables", "iproute2")
CGROUP = "savepoint-engine"
START_SECONDS = 60.0
CAP_SYS_RESOURCE = 24
_RUNTIME = Path(__file__).parent / "node" / "runtime.sh"
_CLIENT_VARIABLES = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "KIND_EXPERIMENTAL_PROVIDER",
)
"""Variables of the user that would direct the clients to another engine."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine."""

    program: str
    """`docker` or `podman`."""
    managed: bool
    """True if the suite started it: the node image is built here, and `down` stops the engine."""
    env: dict[str, str]
    """The environment for `docker`, `podman` and `kind`."""

    def __call__(self, *arguments: str | Path, stdin: str | None = None, timeout: float | None = None) -> str:
        """Run `docker ARGUMENTS` and return its output. Raises ClusterError."""
        return run([self.program, *arguments], env=self.env, stdin=stdin, timeout=timeout).stdout.strip()

    def has_image(self, name: str) -> bool:
        """Return whether the engine has the image."""
        return run([self.program, "image", "inspect", name], env=self.env, check=False).returncode == 0


def find_external() -> Engine | None:
    """Return the engine that the user has running, if any."""
    for program in ("docker", "podman"):
        if shutil.which(program) is None:
            continue
        # `docker --version` succeeds without an engine; `docker info` needs one.
        version = "{{.ServerVersion}}" if program == "docker" else "{{.Version.Version}}"
        answer = run([program, "info", "--format", version], check=False, timeout=30)
        if answer.returncode == 0 and answer.stdout.strip():
            env = dict(os.environ)
            if program == "podman":
                env["KIND_EXPERIMENTAL_PROVIDER"] = "podman"
            return Engine(program, managed=False, env=env)
    return None


def find_managed(paths: Paths) -> Engine | None:
    """Return the suite's engine if it runs and answers."""
    if not _dockerd_runs(paths):
        return None
    engine = _managed(paths)
    if run(["docker", "info"], env=engine.env, check=False, timeout=30).returncode != 0:
        return None
    return engine


def current(paths: Paths) -> Engine:
    """Return the engine that the cluster runs in, managed or external. Raises ClusterError if there is none."""
    found = find_managed(paths) or find_external()
    if found is None:
        raise ClusterError("no cluster is running: run `python -m e2e.cluster up`")
    return found


def start(paths: Paths) -> Engine:
    """Start the suite's engine unless it runs already, and return it. Raises ClusterError."""
    found = find_managed(paths)
    if found is not None:
        return found
    if os.geteuid() != 0:
        raise ClusterError("`docker info` finds no container engine, and starting one requires root")
    if cleanup.leftovers_exist(paths, CGROUP):
        stop(paths)  # of an engine that was killed: its containers may still run without anything to stop them
    paths.make()
    cleanup.record_state(paths)
    paths.engine_data.mkdir(parents=True, exist_ok=True)
    log = paths.run / "dockerd.log"
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            _command(paths),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_raise_limits,  # noqa: PLW1509  # no threads hold locks that this touches
            env={**os.environ, "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"},
        )
    engine = _managed(paths)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            break
        if paths.socket.exists() and run(["docker", "info"], env=engine.env, check=False).returncode == 0:
            _remove_containers(engine)
            return engine
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    stop(paths)
    raise ClusterError(f"dockerd does not answer; the end of its log:\n{tail}")


def stop(paths: Paths) -> list[str]:
    """Stop the suite's engine and remove everything it left outside its data directory.

    Return what could not be removed. Safe in any state, also if nothing runs.
    """
    pid = _pid(paths)
    if pid is not None and _is_dockerd(pid, paths):
        _remove_containers(_managed(paths))
        terminate(pid, grace_seconds=20)
    return cleanup.clean_up(paths, CGROUP)


def _remove_containers(engine: Engine) -> None:
    """Remove every container, volume and network; images stay.

    Also called after a start: an engine that was killed still knows its containers, which are incomplete.
    """

    def listed(*arguments: str) -> list[str]:
        return run(["docker", *arguments], env=engine.env, check=False, timeout=30).stdout.split()

    if containers := listed("ps", "--all", "--quiet"):
        run(["docker", "rm", "--force", "--volumes", *containers], env=engine.env, check=False, timeout=120)
    if networks := listed("network", "ls", "--quiet", "--filter", "type=custom"):
        run(["docker", "network", "rm", *networks], env=engine.env, check=False, timeout=60)
    run(["docker", "volume", "prune", "--force"], env=engine.env, check=False, timeout=120)


def lacks_sys_resource() -> bool:
    """Return whether this root user cannot give CAP_SYS_RESOURCE to a container."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return not int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1
    return False


def _command(paths: Paths) -> list[str]:
    command = [
        "dockerd",
        f"--host=unix://{paths.socket}",
        f"--data-root={paths.engine_data}",
        f"--exec-root={paths.run / 'exec'}",
        f"--pidfile={paths.pidfile}",
        "--config-file=",
        "--bridge=none",
        "--storage-driver=overlay2",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        f"--cgroup-parent=/{CGROUP}",
        "--default-cgroupns-mode=private",
        "--log-level=warn",
    ]
    if lacks_sys_resource():
        command += [f"--add-runtime=savepoint={_runtime(paths)}", "--default-runtime=savepoint"]
    return command


def _runtime(paths: Paths) -> Path:
    copy = paths.run / "runtime"  # a copy, because the working tree may change or move while the engine runs
    shutil.copyfile(_RUNTIME, copy)
    copy.chmod(0o755)
    return copy


def _raise_limits() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _managed(paths: Paths) -> Engine:
    kept = {name: value for name, value in os.environ.items() if name not in _CLIENT_VARIABLES}
    client = paths.run / "client"  # otherwise the client would read the user's contexts, proxies and credentials
    env = {**kept, "DOCKER_HOST": f"unix://{paths.socket}", "DOCKER_CONFIG": str(client), "DOCKER_BUILDKIT": "0"}
    return Engine("docker", managed=True, env=env)


def _pid(paths: Paths) -> int | None:
    try:
        return int(paths.pidfile.read_text())
    except (OSError, ValueError):
        return None


def _is_dockerd(pid: int, paths: Paths) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"--pidfile={paths.pidfile}".encode() in arguments and alive(pid)


def _dockerd_runs(paths: Paths) -> bool:
    pid = _pid(paths)
    return pid is not None and _is_dockerd(pid, paths)


def describe(paths: Paths) -> str:
    """Return one line for `status`."""
    pid = _pid(paths)
    if pid is None or not _is_dockerd(pid, paths):
        return "not running"
    before = json.loads(paths.state_before.read_text()) if paths.state_before.exists() else {}
    return f"dockerd {pid}, started {before.get('at', 'at an unknown time')}"
