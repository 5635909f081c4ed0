"""The processes of the sidecar and the init container: configuration, logging, signals, and wiring.

It decides nothing: see ``lifecycle.incarnation`` and ``restore_container``.
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
from typing import Any, Final

from savepoint.contract import stage_layout
from savepoint.contract.environment import SettingsError
from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError

from savepoint_sidecar import restore_container, settings
from savepoint_sidecar.authority.control_client import ConnectionClock, ControlClient, SidecarIdentity
from savepoint_sidecar.authority.control_connection import Dialer
from savepoint_sidecar.authority.reachability import Reachability
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.ownership import ProcessUser
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.incarnation import Incarnation
from savepoint_sidecar.settings import Settings
from savepoint_sidecar.stage.components import index_sequence

EXIT_USAGE: Final = 2
EXIT_TERMINATED: Final = 128 + signal.SIGTERM
"""Status of a restore that receives SIGTERM. It exits at once: a restore may end at any point, and without a handler
the signal would be ignored by process 1."""
COMMAND_SECONDS: Final = 3.0

log = logging.getLogger("savepoint_sidecar")


def run_sidecar() -> int:
    """Run the native sidecar and return its exit status."""
    return asyncio.run(_serve(_configure(), Failpoints(settings.failpoint_of())))


def run_restore() -> int:
    """Run the init container and return its exit status."""
    failpoints = Failpoints(settings.failpoint_of())
    termination_log = settings.TERMINATION_LOG if settings.TERMINATION_LOG.exists() else None  # created by kubelet
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
    return asyncio.run(restore_container.restore(_configure(), failpoints, termination_log))


def _configure() -> Settings:
    logging.basicConfig(
        level=settings.log_level_of(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return settings.from_environment()
    except SettingsError as error:
        sys.stderr.write(f"savepoint: {error}\n")
        sys.exit(EXIT_USAGE)


async def _serve(configured: Settings, failpoints: Failpoints) -> int:
    """Run until SIGTERM and through the final checkpoint. Each run of the agent in this pod is a new incarnation."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    while (status := await _run_incarnation(configured, failpoints, terminated)) is None:
        log.info("the agent was started again after the end of its run; requesting the next epoch for a fresh start")
        restoring = asyncio.ensure_future(restore_container.restore(configured, failpoints, None))
        await _first_of(restoring, terminated)
        if not restoring.done():
            restoring.cancel()
            return 0
        if restoring.result():
            return restoring.result()
    return status


async def _run_incarnation(configured: Settings, failpoints: Failpoints, terminated: asyncio.Event) -> int | None:
    """Run one incarnation. Return the process's exit status, or None if the agent has begun its next run."""
    incarnation = _make_incarnation(configured, failpoints)
    starting = asyncio.ensure_future(incarnation.start())
    await _first_of(starting, terminated)
    try:
        if not starting.done():
            starting.cancel()
            return 0
        welcome = starting.result()
        stage_layout.started_file(configured.stage).touch()
        log.info("sidecar ready (agent=%s/%s, epoch=%d)", welcome.namespace, welcome.agent, welcome.epoch)
        commands = await _listen(configured.stage, incarnation)
        await _first_of(asyncio.ensure_future(incarnation.next_run_requested.wait()), terminated)
        commands.close()
        if not terminated.is_set():
            return None
        await incarnation.shut_down()
    except SavepointError as error:
        if error.code == Reason.COMPLETED and not terminated.is_set():  # the sidecar's container was restarted, too
            return None
        log.error("the sidecar cannot continue: %s: %s; exiting", error.code, error)
        return 1
    finally:
        await incarnation.close()
    return 0


def _make_incarnation(configured: Settings, failpoints: Failpoints) -> Incarnation:
    client = ControlClient(
        Dialer(configured.control_url, configured.control_ca, configured.token_path),
        SidecarIdentity(configured.pod_uid, configured.node, configured.version),
        ConnectionClock(time.monotonic, secrets.token_bytes, random.random),
        Reachability(configured.api_server, time.monotonic) if configured.api_server else None,
    )
    has_started = stage_layout.started_file(configured.stage).exists()
    config = IncarnationConfig(
        roots=configured.roots,
        stage=configured.stage,
        socket_path=configured.socket_path,
        pod_uid=configured.pod_uid,
        grace_seconds=float(configured.grace_seconds),
        roots_sequence=None if has_started else index_sequence(configured.stage),
        user=ProcessUser.of_this_process(configured.uid_source),
    )
    clock = Clock(lambda: datetime.now(UTC), time.monotonic, time.time_ns, lambda: secrets.token_hex(16))
    incarnation = Incarnation(client, config, clock, failpoints, can_start_next_run=True)
    client.heartbeat, client.attempts = incarnation.heartbeat, incarnation.attempts
    return incarnation


async def _first_of(work: "asyncio.Future[Any]", terminated: asyncio.Event) -> None:
    """Wait until the work is done or the process is told to terminate."""
    termination = asyncio.ensure_future(terminated.wait())
    await asyncio.wait([work, termination], return_when=asyncio.FIRST_COMPLETED)
    termination.cancel()


async def _listen(stage: Path, incarnation: Incarnation) -> asyncio.Server:
    """Serve the sidecar's private socket, on which its preStop hook reports that the pod is stopping."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(COMMAND_SECONDS):
                if (await reader.readline()).strip() == b"prestop":
                    incarnation.begin_shutdown()
                    writer.write(b"ok\n")
                    await writer.drain()
        writer.close()

    path = stage_layout.private_socket(stage)
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(serve, path)
