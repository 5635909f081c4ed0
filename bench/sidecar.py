"""Memory of the native sidecar of an agent of 256 MiB, 1 % of which changes per checkpoint: `python -m bench.sidecar`.

The sidecar's process runs as its image starts it: it connects to the operator's control side over TLS, and to an S3
server through presigned URLs; only the kubelet and the API server are missing. Resident memory is read from /proc:
before the agent connects, between checkpoints, and its peak.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from bench.checkpoint import AGENT, MEBIBYTES, RESEARCHER
from bench.figure import Figure, report
from tests.servers.sidecar_pod import local_control_side, rss
from tests.servers.versitygw import versitygw_server

ROUNDS = 6
REST_SECONDS = 2.0


async def measure(root: Path) -> list[Figure]:
    """Take checkpoints and return the figures of the sidecar's memory."""
    with versitygw_server(root / "s3") as server:
        async with local_control_side(server, root) as control:
            pod = control.pod("a")
            (pod.folder / "agent.py").write_text(AGENT)
            if await pod.restore():
                raise RuntimeError(pod.log())
            sidecar = await pod.sidecar()
            await asyncio.sleep(REST_SECONDS)
            begin = rss(sidecar, "VmRSS")
            pod.start(str(pod.folder / "agent.py"), str(RESEARCHER), str(MEBIBYTES), "1000000", SAVEPOINT_REQUIRED="1")
            async with asyncio.timeout(60):
                while "agent connected" not in pod.log():
                    await asyncio.sleep(0.1)
            for number in range(ROUNDS):
                name = await control.checkpoint()
                if not name.startswith("coder-"):
                    raise RuntimeError(f"checkpoint {number} failed: {name}\n{pod.log()}")
                await asyncio.sleep(0.5)
            await asyncio.sleep(REST_SECONDS)
            print(f"memory of the sidecar before the agent connected: {begin / (1 << 20):.1f} MiB", flush=True)
            rest, peak = (rss(sidecar, what) / (1 << 20) for what in ("VmRSS", "VmHWM"))
            return [
                Figure("memory of the sidecar at rest, between checkpoints", rest, "MiB", 64),
                Figure("memory of the sidecar at work, peak", peak, "MiB", 192),
            ]


def main() -> int:
    """Run the benchmark; return 0 if every goal is met."""
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as folder:
        (Path(folder) / "s3").mkdir()
        return report(asyncio.run(measure(Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
