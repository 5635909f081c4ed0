"""The container engine: the machine's own where one answers, else a dockerd of ours that nobody else sees.

What it is: find, start and stop, and the environment in which `docker` and `kind` reach it. What it is not: a package
installer (bootstrap) and not the broom (leftovers), which `stop` calls.

Our dockerd has its own socket, data, state and pid file, and no default bridge; its containers sit in a cgroup of
their own. It works in the machine's network namespace, so kubectl reaches the cluster directly.
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

from e2e.cluster import leftovers
from e2e.cluster.command import ClusterError, run
from e2e.cluster.paths import Paths
from e2e.cluster.process import alive, terminate

PACKAGES = ("docker.io", "iptables", "iproute2")
CGROUP = "savepoint-engine"
START_SECONDS = 60.0
CAP_SYS_RESOURCE = 24
_RUNTIME = Path(__file__).parent / "node" / "runtime.sh"
_OWN_VARIABLES = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "KIND_EXPERIMENTAL_PROVIDER",
)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers."""

    program: str
    """`docker` or `podman`."""
    ours: bool
    """Started by us: the node image is built here, and `down` stops it."""
    env: dict[str, str]
    """The environment for `docker`, `podman` and `kind`."""

    def __call__(self, *arguments: str | Path, stdin: str | None = None, timeout: float | None = None) -> str:
        """What `docker ARGUMENTS` printed. Raises ClusterError."""
        return run([self.program, *arguments], env=self.env, stdin=stdin, timeout=timeout).stdout.strip()

    def has_image(self, name: str) -> bool:
        return run([self.program, "image", "inspect", name], env=self.env, check=False).returncode == 0


def of_the_machine() -> Engine | None:
    """The engine that the user has running, if any."""
    for program in ("docker", "podman"):
        if shutil.which(program) is None:
            continue
        # A docker client without an engine exits 0 for --version, and for `info` only with the engine's answer.
        version = "{{.ServerVersion}}" if program == "docker" else "{{.Version.Version}}"
        answer = run([program, "info", "--format", version], check=False, timeout=30)
        if answer.returncode == 0 and answer.stdout.strip():
            env = dict(os.environ)
            if program == "podman":
                env["KIND_EXPERIMENTAL_PROVIDER"] = "podman"
            return Engine(program, ours=False, env=env)
    return None


def running(paths: Paths) -> Engine | None:
    """Our engine if it runs and answers."""
    if not _dockerd_runs(paths):
        return None
    engine = _ours(paths)
    if run(["docker", "info"], env=engine.env, check=False, timeout=30).returncode != 0:
        return None
    return engine


def current(paths: Paths) -> Engine:
    """The engine that the cluster runs in, ours or the machine's. Raises ClusterError when there is none."""
    found = running(paths) or of_the_machine()
    if found is None:
        raise ClusterError("no cluster runs here: python -m e2e.cluster up")
    return found


def start(paths: Paths) -> Engine:
    """Our engine, started if it does not run. Raises ClusterError."""
    found = running(paths)
    if found is not None:
        return found
    if os.geteuid() != 0:
        raise ClusterError("no engine answers `docker info`, and starting one needs root")
    if leftovers.anything(paths, CGROUP):
        stop(paths)  # of an engine that was killed: its containers may still run, without anybody who could stop them
    paths.make()
    leftovers.remember(paths)
    paths.engine_data.mkdir(parents=True, exist_ok=True)
    log = paths.run / "dockerd.log"
    with log.open("ab") as words:
        daemon = subprocess.Popen(
            _command(paths),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
            preexec_fn=_raise_limits,  # noqa: PLW1509  # no threads hold locks that this touches
            env={**os.environ, "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"},
        )
    engine = _ours(paths)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            break
        if paths.socket.exists() and run(["docker", "info"], env=engine.env, check=False).returncode == 0:
            _forget(engine)
            return engine
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    stop(paths)
    raise ClusterError(f"dockerd does not answer; the end of its log:\n{tail}")


def stop(paths: Paths) -> list[str]:
    """Stop our engine and remove all that it left outside its data; what could not be removed, in words.

    Safe in any state, also when nothing runs.
    """
    pid = _pid(paths)
    if pid is not None and _is_dockerd(pid, paths):
        _forget(_ours(paths))
        terminate(pid, grace_seconds=20)
    return leftovers.sweep(paths, CGROUP)


def _forget(engine: Engine) -> None:
    """Remove every container, volume and network; images stay.

    When stopping, and also after a start: an engine that was killed still knows its containers, and they are halves.
    """

    def words(*arguments: str) -> list[str]:
        return run(["docker", *arguments], env=engine.env, check=False, timeout=30).stdout.split()

    if containers := words("ps", "--all", "--quiet"):
        run(["docker", "rm", "--force", "--volumes", *containers], env=engine.env, check=False, timeout=120)
    if networks := words("network", "ls", "--quiet", "--filter", "type=custom"):
        run(["docker", "network", "rm", *networks], env=engine.env, check=False, timeout=60)
    run(["docker", "volume", "prune", "--force"], env=engine.env, check=False, timeout=120)


def lacks_sys_resource() -> bool:
    """Whether this root cannot give CAP_SYS_RESOURCE to a container."""
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
    copy = paths.run / "runtime"  # a copy: the working tree may change or move while the engine runs
    shutil.copyfile(_RUNTIME, copy)
    copy.chmod(0o755)
    return copy


def _raise_limits() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _ours(paths: Paths) -> Engine:
    kept = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
    client = paths.run / "client"  # else the client would read the user's contexts, proxies and credentials
    env = {**kept, "DOCKER_HOST": f"unix://{paths.socket}", "DOCKER_CONFIG": str(client), "DOCKER_BUILDKIT": "0"}
    return Engine("docker", ours=True, env=env)


def _pid(paths: Paths) -> int | None:
    try:
        return int(paths.pidfile.read_text())
    except (OSError, ValueError):
        return None


def _is_dockerd(pid: int, paths: Paths) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"--pidfile={paths.pidfile}".encode() in words and alive(pid)


def _dockerd_runs(paths: Paths) -> bool:
    pid = _pid(paths)
    return pid is not None and _is_dockerd(pid, paths)


def describe(paths: Paths) -> str:
    """One line for `status`."""
    pid = _pid(paths)
    if pid is None or not _is_dockerd(pid, paths):
        return "not running"
    before = json.loads(paths.before.read_text()) if paths.before.exists() else {}
    return f"dockerd {pid}, started {before.get('at', 'at an unknown time')}"
