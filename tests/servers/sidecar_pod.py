"""A pod's real processes (init container, native sidecar, agent) over an operator's control side and a real S3 server.

Only kubelet and the API server are missing: the caller starts and ends the processes as kubelet would. Used by the
integration tests and the benchmarks.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from savepoint_operator.model.views import AgentRef

from tests.polling import until
from tests.servers.control import ControlSetup, ControlSide, control_setup
from tests.servers.s3 import S3Server

BUCKET = "savepoint-sidecar-tests"
AGENT = AgentRef("demo", "coder")
IDLE_BYTES = 64 << 20
WORK_BYTES = 192 << 20

AGENT_PROGRAM = """
import json, os, pathlib, sys, time
import savepoint

reports, state = pathlib.Path(os.environ["REPORTS"]), pathlib.Path(os.environ["STATE"])

def report(**fields):
    with open(reports, "a") as file:
        file.write(json.dumps(fields) + "\\n")

def work(item):
    report(step=item)
    time.sleep(0.02)
    lines = (state / "log").read_text().splitlines() if item else []
    text = "".join(f"{line}\\n" for line in [*lines[:item], item])  # over what a killed call left
    (state / ".new").write_text(text)
    (state / ".new").rename(state / "log")
    return item

agent = savepoint.connect()
notes = agent.document("notes", default={"n": 0})
lines = (state / "log").read_text().splitlines() if (state / "log").exists() else []
restored = agent.restored
report(connected=notes["n"], lines=len(lines), at=restored.checkpoint if restored else None,
       how=restored.how if restored else None)
for item in agent.loop("items", range(100000)):
    agent.step("work", work, item)
    notes["n"] = item + 1
"""


class LocalControlSide(ControlSide):
    """An operator's control side, with pods whose containers are processes on this machine."""

    def __init__(self, setup: ControlSetup) -> None:
        super().__init__(setup)
        self.pods: list[LocalPod] = []

    async def checkpoint(self) -> str:
        """Order a checkpoint; return its name, or the reason for which it failed."""
        assert self.server is not None
        attempt = secrets.token_hex(16)
        await self.server.orders.checkpoint(AGENT, attempt, "Interval", 60)
        await until(lambda: attempt in self.ended_attempts(), message=f"attempt {attempt} has not ended")
        return self.ended_attempts()[attempt]

    def ended_attempts(self) -> dict[str, str]:
        """Return, for each attempt that has ended, the name of its checkpoint, or the reason for which it failed."""
        committed = {head.record.attempt: head.record.name for head in self.recorder.calls_of("committed")}
        failed = {result.attempt: result.reason for result in self.recorder.calls_of("failed")}
        return {**failed, **committed}

    def pod(self, uid: str, **changes: Any) -> "LocalPod":
        """Create a pod with empty volumes, on its own node."""
        self.register(AGENT, uid, **changes)
        pod = LocalPod(self, uid, self.folder / uid)
        self.pods.append(pod)
        return pod


class LocalPod:
    """The volumes and the processes of one pod."""

    def __init__(self, control: LocalControlSide, uid: str, folder: Path) -> None:
        self.control, self.uid, self.folder = control, uid, folder
        self.root = "data"
        self.processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "stage", "socket"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "token").write_text(f"token-of-{self.uid}\n")
        (self.folder / "agent.py").write_text(AGENT_PROGRAM)

    def environment(self) -> dict[str, str]:
        path = str(self.folder / "state")
        roots = [{"name": self.root, "mountPath": f"/{self.root}", "path": path, "persistent": False}]
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SAVEPOINT_", "KUBERNETES_"))},
            "SAVEPOINT_CONTROL_URL": self.control.url,
            "SAVEPOINT_CONTROL_CA": self.control.authority.certificate.decode(),
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
        """Start python with this command; ``more`` are further environment variables."""
        with (self.folder / "log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command], env={**self.environment(), **more}, stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    async def restore(self) -> int:
        """Run the init container and return its exit status."""
        process = self.start("-c", "import sys; from savepoint_sidecar.main import restore; sys.exit(restore())")
        return await exit_of(process)

    async def sidecar(self) -> "subprocess.Popen[bytes]":
        """Start the native sidecar and return it once its startup probe succeeds."""
        process = self.start("-m", "savepoint_sidecar.main")
        async with asyncio.timeout(30):
            while await exit_of(self.start("-m", "savepoint_sidecar.main", "ready")) != 0:
                assert process.poll() is None, self.log()
        return process

    def agent(self) -> "subprocess.Popen[bytes]":
        """Start the agent's container."""
        folders = {"REPORTS": str(self.folder / "reports"), "STATE": str(self.folder / "state")}
        return self.start(str(self.folder / "agent.py"), SAVEPOINT_REQUIRED="1", **folders)

    def reports(self, name: str) -> list[dict[str, Any]]:
        """Return the agent's reports that have this field."""
        path = self.folder / "reports"
        lines = path.read_text().splitlines() if path.exists() else []
        return [each for each in map(json.loads, lines) if name in each]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def await_iterations(self, count: int) -> None:
        """Wait until the agent has begun this many further iterations of its loop."""
        begin = len(self.reports("step"))
        await until(lambda: len(self.reports("step")) >= begin + count, message=self.log)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


async def exit_of(process: "subprocess.Popen[bytes]", seconds: float = 60) -> int:
    """Wait for the process to end and return its exit status."""
    async with asyncio.timeout(seconds):
        while process.poll() is None:
            await asyncio.sleep(0.02)
    return int(process.returncode)


def rss(process: "subprocess.Popen[bytes]", field_name: str) -> int:
    """Return VmRSS or VmHWM in bytes."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) * 1024
    raise AssertionError(field_name)


@asynccontextmanager
async def local_control_side(server: S3Server, folder: Path) -> AsyncIterator[LocalControlSide]:
    """Yield a running control side over this S3 server; kill its pods and stop it at the end."""
    with control_setup(server, BUCKET, folder) as setup:
        control = LocalControlSide(setup)
        await control.start()
        try:
            yield control
        finally:
            for pod in control.pods:
                pod.kill()
            await control.stop()
