"""The sidecar's and the init container's processes: configuration, log, signals, and the parts put together.

It decides nothing: see ``incarnation`` and ``init``.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from savepoint.contract import stage_layout
from savepoint.errors import SavepointError

from savepoint_sidecar import restore_container, settings
from savepoint_sidecar.authority.channel import Dialer
from savepoint_sidecar.authority.control_client import ControlClient
from savepoint_sidecar.authority.reachability import Reachability
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.incarnation import Incarnation
from savepoint_sidecar.settings import Settings
from savepoint_sidecar.stage.components import index_sequence

EXIT_USAGE = 2
EXIT_TERMINATED = 128 + signal.SIGTERM
"""Of a restore that is told to end: at once, since it may end anywhere, and as process 1 it would ignore the signal."""

log = logging.getLogger("savepoint_sidecar")


def run_sidecar() -> int:
    """The native sidecar; its exit status."""
    return asyncio.run(_serve(_configured(), Failpoints(settings.failpoint_of())))


def run_restore() -> int:
    """The init container; its exit status."""
    failpoints = Failpoints(settings.failpoint_of())
    told = settings.TERMINATION_LOG if settings.TERMINATION_LOG.exists() else None  # kubelet makes it
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
    return asyncio.run(restore_container.restore(_configured(), failpoints, told))


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
    """Until SIGTERM, and through the last checkpoint. A run that begins in the same pod is another incarnation."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    while (status := await _live(configured, failpoints, terminated)) is None:
        log.info("the agent was started again after the end of its run: it gets the next epoch, and starts fresh")
        renewal = asyncio.ensure_future(restore_container.restore(configured, failpoints, None))
        await _first_of(renewal, terminated)
        if not renewal.done():
            renewal.cancel()
            return 0
        if renewal.result():
            return renewal.result()
    return status


async def _live(configured: Settings, failpoints: Failpoints, terminated: asyncio.Event) -> int | None:
    """One incarnation; its exit status, None: the agent has begun the next run."""
    started = stage_layout.started_file(configured.stage)
    client = ControlClient(
        Dialer(configured.control_url, configured.control_ca, configured.token_path),
        pod_uid=configured.pod_uid,
        node=configured.node,
        version=configured.version,
        monotonic=time.monotonic,
        random_bytes=secrets.token_bytes,
        jitter=random.random,
        reach=Reachability(configured.api_server, time.monotonic) if configured.api_server else None,
    )
    terms = IncarnationConfig(
        roots=configured.roots,
        stage=configured.stage,
        socket_path=configured.socket_path,
        pod_uid=configured.pod_uid,
        grace_seconds=float(configured.grace_seconds),
        cut_sequence=None if started.exists() else index_sequence(configured.stage),
    )
    edges = Clock(lambda: datetime.now(UTC), time.monotonic, time.time_ns, lambda: secrets.token_hex(16))
    incarnation = Incarnation(client, terms, edges, failpoints, renewable=True)
    client.heartbeat, client.attempts = incarnation.heartbeat, incarnation.attempts
    starting = asyncio.ensure_future(incarnation.start())
    await _first_of(starting, terminated)
    try:
        if not starting.done():
            starting.cancel()
            return 0
        welcome = starting.result()
        started.touch()
        log.info("agent %s/%s, epoch %d", welcome.namespace, welcome.agent, welcome.epoch)
        private = await _listen(configured.stage, incarnation)
        await _first_of(asyncio.ensure_future(incarnation.succeeded.wait()), terminated)
        private.close()
        if not terminated.is_set():
            return None
        await incarnation.end()
    except SavepointError as error:
        code = error.code
        if code == "Completed" and not terminated.is_set():  # the sidecar's container was started again, too
            return None
        log.error("%s: %s", code, error)
        return 1
    finally:
        await incarnation.close()
    return 0


async def _first_of(work: "asyncio.Future[Any]", terminated: asyncio.Event) -> None:
    """Until the work has ended or the pod is to stop."""
    ending = asyncio.ensure_future(terminated.wait())
    await asyncio.wait([work, ending], return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()


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

    path = stage_layout.private_socket(stage)
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(serve, path)
