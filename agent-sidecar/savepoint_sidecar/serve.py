"""The sidecar's and the init container's processes: configuration, log, signals, and the parts put together.

It decides nothing: see ``incarnation`` and ``init``.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from savepoint.contract.agent import STAGE_SIDECAR
from savepoint.errors import SavepointError

from savepoint_sidecar import init, settings
from savepoint_sidecar.channel import Dialer
from savepoint_sidecar.components import index_sequence
from savepoint_sidecar.control import ControlClient
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.incarnation import Incarnation
from savepoint_sidecar.probe import PRIVATE_SOCKET
from savepoint_sidecar.reach import Reach
from savepoint_sidecar.settings import Settings
from savepoint_sidecar.terms import Edges, Terms

EXIT_USAGE = 2

log = logging.getLogger("savepoint_sidecar")


def run_sidecar() -> int:
    """The native sidecar; its exit status."""
    return asyncio.run(_serve(_configured(), Failpoints(settings.failpoint_of())))


def run_restore() -> int:
    """The init container; its exit status."""
    failpoints = Failpoints(settings.failpoint_of())
    told = settings.TERMINATION_LOG if settings.TERMINATION_LOG.exists() else None  # kubelet makes it
    return asyncio.run(init.restore(_configured(), failpoints, told))


def _configured() -> Settings:
    logging.basicConfig(
        level=settings.log_level_of(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return settings.from_environment()
    except settings.SettingsError as error:
        sys.stderr.write(f"savepoint: {error}\n")
        sys.exit(EXIT_USAGE)


async def _serve(configured: Settings, failpoints: Failpoints) -> int:
    """Until SIGTERM, and through the last checkpoint."""
    started = configured.stage / STAGE_SIDECAR / init.STARTED
    client = ControlClient(
        Dialer(configured.control_url, configured.control_ca, configured.token_path),
        pod_uid=configured.pod_uid,
        node=configured.node,
        version=configured.version,
        monotonic=time.monotonic,
        random_bytes=secrets.token_bytes,
        jitter=random.random,
        reach=Reach(configured.api_server, time.monotonic) if configured.api_server else None,
    )
    terms = Terms(
        roots=configured.roots,
        stage=configured.stage,
        socket_path=configured.socket_path,
        pod_uid=configured.pod_uid,
        grace_seconds=float(configured.grace_seconds),
        cut_sequence=None if started.exists() else index_sequence(configured.stage),
    )
    edges = Edges(lambda: datetime.now(UTC), time.monotonic, time.time_ns, lambda: secrets.token_hex(16))
    incarnation = Incarnation(client, terms, edges, failpoints)
    client.heartbeat, client.attempts = incarnation.heartbeat, incarnation.attempts
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    starting, ending = asyncio.ensure_future(incarnation.start()), asyncio.ensure_future(terminated.wait())
    await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
    try:
        if not starting.done():
            starting.cancel()
            return 0
        welcome = starting.result()
        started.touch()
        log.info("agent %s/%s, epoch %d", welcome.namespace, welcome.agent, welcome.epoch)
        private = await _listen(configured.stage, incarnation)
        await ending
        private.close()
        await incarnation.end()
    except SavepointError as error:
        log.error("%s: %s", getattr(error, "code", error.reason), error)
        return 1
    finally:
        ending.cancel()
        await incarnation.close()
    return 0


async def _listen(stage: Path, incarnation: Incarnation) -> asyncio.Server:
    """The sidecar's own socket: what its preStop hook says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(3.0):
                if (await reader.readline()).strip() == b"prestop":
                    incarnation.begin_end()
                    writer.write(b"ok\n")
                    await writer.drain()
        writer.close()

    path = stage / PRIVATE_SOCKET
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(serve, path)
