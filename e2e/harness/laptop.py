"""The researcher on a laptop, without a cluster: `savepoint run`, kill -9 of the agent or the supervisor, run again.

Used by the demo and the suite.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.harness.kube import FakeServices, until

AGENTS = Path(__file__).resolve().parents[1] / "agents"
SAVEPOINT = Path(sys.executable).with_name("savepoint")


@dataclass(frozen=True)
class Laptop:
    """A store in a folder, the fake services on loopback, and the researcher as a command."""

    store: Path
    services: FakeServices
    mebibytes: int

    def start(self) -> subprocess.Popen[bytes]:
        """Start `savepoint run --store DIR -- python agent.py` in its own process group."""
        environment = {
            **os.environ,
            "SERVICES_URL": self.services.url,
            "AGENT": "researcher",
            "STATE_MIB": str(self.mebibytes),
            "OPENBLAS_NUM_THREADS": "1",
            "XDG_CONFIG_HOME": str(self.store / "config"),
        }
        command = [
            str(SAVEPOINT),
            "run",
            "--store",
            str(self.store / "store"),
            "--agent",
            "researcher",
            "--interval",
            "3",
        ]
        command += ["--", sys.executable, str(AGENTS / "researcher" / "agent.py")]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    def log(self) -> str:
        """Return the output of `savepoint log DIR`."""
        command = [str(SAVEPOINT), "log", str(self.store / "store")]
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self.store / "config")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def agent_pid(self, supervisor: int) -> int:
        """Return the id of the agent's process, a child of the supervisor."""
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children")

        def found() -> int:
            pids = [int(pid) for pid in children.read_text().split()]
            return next((pid for pid in pids if b"agent.py" in Path(f"/proc/{pid}/cmdline").read_bytes()), 0)

        return until("the agent's process", found, seconds=20)

    def wait_turns(self, more: int, seconds: float = 60) -> int:
        """Wait until the agent has reported ``more`` further turns; return its turn."""
        begin = self.services.turns("researcher")
        until(f"{more} more turns", lambda: self.services.turns("researcher") >= begin + more, seconds=seconds)
        return self.services.turn("researcher")

    def kill(self, pid: int, process: subprocess.Popen[bytes]) -> None:
        """Send SIGKILL to the agent or the supervisor, and wait until the supervisor has ended."""
        os.kill(pid, signal.SIGKILL)
        process.wait(30)

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """Press Ctrl-C and return the exit status."""
        process.send_signal(signal.SIGINT)
        return process.wait(60)


@contextlib.contextmanager
def laptop(mebibytes: int = 64) -> Iterator[Laptop]:
    """Yield a laptop with an empty store, which is removed afterwards."""
    server = _services_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="savepoint-laptop-") as folder:
        try:
            yield Laptop(Path(folder), FakeServices(f"http://127.0.0.1:{server.server_address[1]}"), mebibytes)
        finally:
            server.shutdown()
            server.server_close()


def _services_server() -> Any:
    services = AGENTS / "services"
    sys.path.insert(0, str(services))
    spec = importlib.util.spec_from_file_location("savepoint_services_server", services / "server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.serve(0, 0.05, "127.0.0.1")
