"""Memory of the native sidecar beside an agent of 256 MiB, 1 % changed a checkpoint: `python -m bench.sidecar`.

The sidecar's own process as its image starts it, over TLS to the operator's control side and by presigned URLs to an S3
server; only kubelet and the API server are missing. Resident memory from /proc: before the agent, between checkpoints,
and the most it ever was.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from bench.checkpoint import AGENT, MEBIBYTES, RESEARCHER
from bench.figure import Figure, told
from tests.servers.sidecar_pod import rss, site_over
from tests.servers.versitygw import versitygw_server

ROUNDS = 6
REST_SECONDS = 2.0


async def measured(room: Path) -> list[Figure]:
    """Rounds of checkpoints, and what the sidecar held."""
    with versitygw_server(room / "s3") as server:
        async with site_over(server, room) as site:
            pod = site.pod("a")
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
                name = await site.checkpoint()
                if not name.startswith("coder-"):
                    raise RuntimeError(f"checkpoint {number} failed: {name}\n{pod.log()}")
                await asyncio.sleep(0.5)
            await asyncio.sleep(REST_SECONDS)
            print(f"the sidecar before the agent connected: {begin / (1 << 20):.1f} MiB", flush=True)
            rest, most = (rss(sidecar, what) / (1 << 20) for what in ("VmRSS", "VmHWM"))
            return [
                Figure("memory of the sidecar at rest, between checkpoints", rest, "MiB", 64),
                Figure("memory of the sidecar at work, the most it was", most, "MiB", 192),
            ]


def main() -> int:
    """0 when every goal is met."""
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as folder:
        (Path(folder) / "s3").mkdir()
        return told(asyncio.run(measured(Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
