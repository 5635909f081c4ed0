"""The supervisor of ``savepoint run``: one incarnation of the agent, its process, and the signals sent to both."""

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import Welcome
from savepoint.contract.names import ENV_GRACE_SECONDS, ENV_SOCKET, ENV_STAGE
from savepoint.repository.format.canonical import time_of
from savepoint_sidecar.authority.local import LocalAuthority
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.incarnation import Incarnation
from savepoint_sidecar.settings import failpoint_of
from savepoint_sidecar.stage.components import prepare_stage

from savepoint_cli.agent_processes import LEFT_SECONDS, AgentProcesses
from savepoint_cli.laptop_messages import laptop_text
from savepoint_cli.leftovers import record
from savepoint_cli.process_table import Process, find
from savepoint_cli.run_options import RunOptions
from savepoint_cli.signal_count import SignalCount
from savepoint_cli.state_folders import state_roots
from savepoint_cli.state_restore import StateRestore, damage_remedy, discard_journal


class Supervisor:
    """Runs the agent's command once, as one incarnation."""

    def __init__(
        self, options: RunOptions, authority: LocalAuthority, stage: Path, socket_path: Path, lock: int
    ) -> None:
        """``authority`` has granted the epoch; ``stage`` exists, and is used by this process alone.

        ``lock`` is the descriptor of the agent's lock.
        """
        self._lock = lock
        self._options, self._authority, self._stage, self._socket = options, authority, stage, socket_path
        self._roots = state_roots(options.states)
        self._failpoints = Failpoints(failpoint_of())
        self.processes: AgentProcesses | None = None
        """The agent's processes, once they are started."""
        self._incarnation: Incarnation | None = None
        self._signals = SignalCount()
        self._abandoned = asyncio.Event()

    async def run(self) -> int:
        """Restore, run the command and take the final checkpoint; return the exit status."""
        welcome = await self._authority.welcome()
        prepare_stage(self._stage, welcome.run)
        restore = StateRestore(self._options, self._roots, self._stage, self._failpoints, now=utc_now, report=report)
        names = await asyncio.to_thread(restore.run, welcome, self._authority.blobs)
        rolled_back_at = await asyncio.to_thread(self._authority.rolled_back_at)
        await asyncio.to_thread(discard_journal, self._stage, welcome.run, rolled_back_at)
        roots_sequence = self._take_released_sequence()  # after every refusal: a refused run changes nothing
        config = IncarnationConfig(
            roots=self._roots,
            stage=self._stage,
            socket_path=self._socket,
            pod_uid=f"epoch-{welcome.epoch}",
            grace_seconds=self._options.grace_seconds,
            roots_sequence=roots_sequence,
            component_names=names,
            damage_remedy=damage_remedy(self._options.store),
            reword=laptop_text,
        )
        clock = Clock(utc_now, time.monotonic, time.time_ns, lambda: secrets.token_hex(16))
        self._incarnation = Incarnation(self._authority, config, clock, self._failpoints)
        await self._incarnation.start()
        report(_greeting(welcome))
        self.processes = self._start()
        status = await asyncio.shield(self.processes.exit_status)
        await self._end_left_processes(self.processes)
        await self._finish(status)
        return status

    def _start(self) -> AgentProcesses:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                loop.add_signal_handler(number, self._on_signal, number)
        environment = {
            **os.environ,
            ENV_SOCKET: str(self._socket),
            ENV_STAGE: str(self._stage),
            ENV_GRACE_SECONDS: f"{self._options.grace_seconds:g}",
        }
        return AgentProcesses(self._options.command, environment, report, self._record_processes, (self._lock,))

    def _record_processes(self, keeper: Process, agent: Process) -> None:
        try:
            record(stage_layout.laptop_processes(self._stage), keeper, agent)
        except OSError as error:
            report(f"cannot record the agent's processes for the next start: {error.strerror}")

    async def _end_left_processes(self, processes: AgentProcesses) -> None:
        """End what the command leaves. An agent with the SDK behind it gets the time to flush its last state."""
        seconds = LEFT_SECONDS
        with self._reported_failure("cannot begin the final checkpoint"):
            assert self._incarnation is not None
            if self._incarnation.sessions.live is not None and _is_running(self._incarnation):
                self._incarnation.begin_shutdown()
                seconds = self._options.grace_seconds
        await processes.end(min(seconds, self._options.grace_seconds))

    async def _finish(self, status: int) -> None:
        """Take the final checkpoint, unless a signal abandons it. A failure is reported, and changes no exit status."""
        assert self._incarnation is not None
        if status == 128 + signal.SIGINT:
            self._signals.count += 1  # Ctrl-C at a terminal reaches the command only
        with self._reported_failure("the final checkpoint failed"):
            last = asyncio.ensure_future(self._incarnation.shut_down())
            abandoned = asyncio.ensure_future(self._abandoned.wait())
            await asyncio.wait((last, abandoned), return_when=asyncio.FIRST_COMPLETED)
            if not last.done():
                report("stopped before the final checkpoint was complete")
                last.cancel()
                return
            abandoned.cancel()
            last.result()
            latest = self._incarnation.checkpointer.parent
            if self._incarnation.roots_match_checkpoint and latest is not None:
                stage_layout.released_file(self._stage).write_text(json.dumps({"sequence": latest.ref.sequence}))

    @contextmanager
    def _reported_failure(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - nothing here may change the agent's exit status
            report(f"{what}: {type(error).__name__}: {laptop_text(str(error))}")

    def _on_signal(self, number: int) -> None:
        """Ask the agent to flush and end on the first signal, send the second to its process, and kill on the third.

        Once the command has ended, a second signal abandons the final checkpoint.
        """
        assert self._incarnation is not None
        count = self._signals.add(number, time.monotonic())
        if self.processes is None or count == 0:
            return
        if self.processes.exit_status.done():
            self._on_late_signal(count)
            return
        has_sdk = self._incarnation.sessions.live is not None
        if count == 1:
            with self._reported_failure("cannot begin the final checkpoint"):
                self._incarnation.begin_shutdown()
            asyncio.get_running_loop().call_later(self._options.grace_seconds, self.processes.kill)
        if count <= 2:
            self.processes.send(signal.SIGTERM if has_sdk else number)
        else:
            self.processes.kill()

    def _on_late_signal(self, count: int) -> None:
        assert self.processes is not None
        if count == 1:
            report("the agent has ended; taking its final checkpoint (a second signal stops at once)")
            return
        self.processes.kill()
        self._abandoned.set()

    def _take_released_sequence(self) -> int | None:
        """Read, and remove, the sequence of the checkpoint that the previous run's orderly end left the files at.

        With it, changes to files since then are known to be the user's own.
        """
        path = stage_layout.released_file(self._stage)
        try:
            return int(json.loads(path.read_text())["sequence"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            path.unlink(missing_ok=True)


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def _is_running(incarnation: Incarnation) -> bool:
    session = incarnation.sessions.live
    return session is not None and find(session.connect.pid) is not None


def _greeting(welcome: Welcome) -> str:
    if welcome.parent is None:
        return f"agent {welcome.agent} starts fresh (epoch {welcome.epoch})"
    age = utc_now() - time_of(welcome.parent.time)
    return (
        f"agent {welcome.agent} resumes from {welcome.parent.name}, {_age(int(age.total_seconds()))} old "
        f"(epoch {welcome.epoch})"
    )


def _age(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{max(0, seconds)}s"


def report(text: str) -> None:
    """Print a message of the supervisor on standard error."""
    with suppress(OSError, ValueError):  # its reader has ended, or it was closed
        print(f"savepoint: {text}", file=sys.stderr, flush=True)
