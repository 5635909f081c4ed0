"""A pod's real processes (init container, native sidecar, agent) over an operator's control side and a real S3 server.

Only kubelet and the API server are missing: the caller starts and ends the processes as kubelet would. Used by the
integration tests and the benchmarks.
"""

import asyncio
import json
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from savepoint_operator.control.dependencies import ControlLimits, ControlPorts
from savepoint_operator.control.server import PATH, ControlServer
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.views import AgentRef

from tests.fakes.operator_ports import Recorder, Reviewer, ScriptedPodResolver, Stores, incarnation
from tests.servers.control import ground
from tests.servers.pki import Authority
from tests.servers.s3 import S3Server

BUCKET = "savepoint-sidecar-tests"
AGENT = AgentRef("demo", "coder")
IDLE_BYTES = 64 << 20
WORK_BYTES = 192 << 20

AGENT_PROGRAM = """
import json, os, pathlib, sys, time
import savepoint

out, state = pathlib.Path(os.environ["TOLD"]), pathlib.Path(os.environ["STATE"])

def tell(**what):
    with open(out, "a") as file:
        file.write(json.dumps(what) + "\\n")

def work(item):
    tell(step=item)
    time.sleep(0.02)
    return item

agent = savepoint.connect()
notes = agent.document("notes", default={"n": 0})
lines = (state / "log").read_text().splitlines() if (state / "log").exists() else []
restored = agent.restored
tell(connected=notes["n"], lines=len(lines), at=restored.checkpoint if restored else None,
     how=restored.how if restored else None)
for item in agent.loop("items", range(100000)):
    agent.step("work", work, item)
    with open(state / "log", "a") as file:
        file.write(f"{item}\\n")
    notes["n"] = item + 1
"""


@dataclass
class Site:
    """An operator's control side over a real S3 server."""

    folder: Path
    stores: Stores
    served: ssl.SSLContext
    authority: Authority
    pod_resolver: ScriptedPodResolver = field(default_factory=ScriptedPodResolver)
    reviewer: Reviewer = field(default_factory=Reviewer)
    port: int = 0
    server: ControlServer | None = None
    pods: "list[Pod]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.pod_resolver)

    async def start(self) -> None:
        ports = ControlPorts(self.reviewer, self.pod_resolver, self.stores, self.recorder)
        limits = ControlLimits(poll_seconds=0.05, linger_seconds=0.1)
        clocks = Clocks(lambda: datetime.now(UTC), time.monotonic)
        self.server = ControlServer(ports, clocks, random_bytes=os.urandom, limits=limits)
        self.port = await self.server.start(self.served, "127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.drain(5)
        await self.server.stop()

    async def checkpoint(self) -> str:
        """Order a checkpoint; the name under which it was committed."""
        assert self.server is not None
        attempt = secrets.token_hex(16)
        await self.server.orders.checkpoint(AGENT, attempt, "Interval", 60)
        await until(lambda: attempt in self.ended(), what=f"attempt {attempt}")
        return self.ended()[attempt]

    def ended(self) -> dict[str, str]:
        """Attempts that have ended: the checkpoint's name, or the reason why there is none."""
        committed = {head.record.attempt: head.record.name for head in self.recorder.calls_of("committed")}
        failed = {result.attempt: result.reason for result in self.recorder.calls_of("failed")}
        return {**failed, **committed}

    def pod(self, uid: str, **more: str) -> "Pod":
        """A pod with empty volumes on a node of its own."""
        who = replace(incarnation(AGENT, uid), **more)
        self.reviewer.pods[uid], self.pod_resolver.incarnations[uid] = who.pod, who
        pod = Pod(self, uid, self.folder / uid)
        self.pods.append(pod)
        return pod


@dataclass
class Pod:
    """Volumes and processes of one pod."""

    site: Site
    uid: str
    folder: Path
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("state", "stage", "socket"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "token").write_text(f"token-of-{self.uid}\n")
        (self.folder / "agent.py").write_text(AGENT_PROGRAM)

    def environment(self) -> dict[str, str]:
        roots = [{"name": "data", "mountPath": "/data", "path": str(self.folder / "state"), "persistent": False}]
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SAVEPOINT_", "KUBERNETES_"))},
            "SAVEPOINT_CONTROL_URL": f"wss://localhost:{self.site.port}{PATH}",
            "SAVEPOINT_CONTROL_CA": self.site.authority.certificate.decode(),
            "SAVEPOINT_TOKEN": str(self.folder / "token"),
            "SAVEPOINT_ROOTS": json.dumps(roots),
            "SAVEPOINT_POD_UID": self.uid,
            "SAVEPOINT_NODE_NAME": "n1",
            "SAVEPOINT_GRACE_SECONDS": "20",
            "SAVEPOINT_SOCKET": str(self.folder / "socket" / "agent.sock"),
            "SAVEPOINT_STAGE": str(self.folder / "stage"),
            "MALLOC_ARENA_MAX": "2",
        }

    def start(self, *command: str, **more: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command], env={**self.environment(), **more}, stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    async def restore(self) -> int:
        """The init container, to its end."""
        process = self.start("-c", "import sys; from savepoint_sidecar.main import restore; sys.exit(restore())")
        return await exit_of(process)

    async def sidecar(self) -> "subprocess.Popen[bytes]":
        """The native sidecar, once its startup probe succeeds."""
        process = self.start("-m", "savepoint_sidecar.main")
        async with asyncio.timeout(30):
            while await exit_of(self.start("-m", "savepoint_sidecar.main", "ready")) != 0:
                assert process.poll() is None, self.log()
        return process

    def agent(self) -> "subprocess.Popen[bytes]":
        told = {"TOLD": str(self.folder / "told"), "STATE": str(self.folder / "state"), "SAVEPOINT_REQUIRED": "1"}
        return self.start(str(self.folder / "agent.py"), **told)

    def told(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        return [each for each in map(json.loads, lines) if name in each]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def turns(self, more: int) -> None:
        """Until the agent has run so many more steps."""
        begin = len(self.told("step"))
        await until(lambda: len(self.told("step")) >= begin + more, what=self.log)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


async def exit_of(process: "subprocess.Popen[bytes]", seconds: float = 60) -> int:
    async with asyncio.timeout(seconds):
        while process.poll() is None:
            await asyncio.sleep(0.02)
    return int(process.returncode)


async def until(condition: Callable[[], object], what: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what() if callable(what) else what
        await asyncio.sleep(0.02)


def rss(process: "subprocess.Popen[bytes]", field_name: str) -> int:
    """VmRSS or VmHWM in bytes."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) * 1024
    raise AssertionError(field_name)


@asynccontextmanager
async def site_over(server: S3Server, folder: Path) -> AsyncIterator[Site]:
    """A site over this S3 server, whose pods end with the block."""
    with ground(server, BUCKET, folder) as on:
        made = Site(folder, on.stores, on.served, on.authority)
        await made.start()
        try:
            yield made
        finally:
            for pod in made.pods:
                pod.kill()
            await made.stop()
