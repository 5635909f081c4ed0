"""The supervisor of ``savepoint run``: one incarnation of the agent, its process, and the signals sent to both."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, Welcome
from savepoint.contract.names import ENV_SOCKET, ENV_STAGE
from savepoint.errors import TargetNotEmpty
from savepoint.repository.format.canonical import time_of
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Manifest
from savepoint_sidecar.authority.local import LocalAuthority
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.incarnation import Incarnation
from savepoint_sidecar.restore.file_restore import ready_marker, restore_files, root_actions
from savepoint_sidecar.settings import failpoint_of
from savepoint_sidecar.stage.components import prepare_stage

from savepoint_cli import child
from savepoint_cli.run_options import RunOptions, state_roots


class Supervisor:
    """Runs the agent's command once, as one incarnation."""

    def __init__(self, options: RunOptions, authority: LocalAuthority, stage: Path, socket_path: Path) -> None:
        """``authority`` has granted the epoch; ``stage`` exists, and is used by this process alone."""
        self._options, self._authority, self._stage, self._socket = options, authority, stage, socket_path
        self._roots = state_roots(options.states)
        self._failpoints = Failpoints(failpoint_of())
        self._process: subprocess.Popen[bytes] | None = None
        self._incarnation: Incarnation | None = None
        self._signals = 0

    async def run(self) -> int:
        """Restore, run the command and take the final checkpoint; return the exit status."""
        welcome = await self._authority.welcome()
        prepare_stage(self._stage, welcome.run)
        roots_sequence = self._take_released_sequence()
        await asyncio.to_thread(self._restore, welcome)
        config = IncarnationConfig(
            roots=self._roots,
            stage=self._stage,
            socket_path=self._socket,
            pod_uid=f"epoch-{welcome.epoch}",
            grace_seconds=self._options.grace_seconds,
            roots_sequence=roots_sequence,
        )
        clock = Clock(utc_now, time.monotonic, time.time_ns, lambda: secrets.token_hex(16))
        self._incarnation = Incarnation(self._authority, config, clock, self._failpoints)
        await self._incarnation.start()
        _report(_greeting(welcome))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        self._process = self._start()
        try:
            status = await asyncio.to_thread(self._process.wait)
        finally:
            _reclaim_terminal()
            await self._incarnation.shut_down()
            latest = self._incarnation.checkpointer.parent
        if self._incarnation.roots_match_checkpoint and latest is not None:
            stage_layout.released_file(self._stage).write_text(json.dumps({"sequence": latest.ref.sequence}))
        return status if status >= 0 else 128 - status

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *self._options.command]
        environment = {**os.environ, ENV_SOCKET: str(self._socket), ENV_STAGE: str(self._stage)}
        return subprocess.Popen(command, env=environment, process_group=0)  # noqa: S603 - the user's own command

    def _on_signal(self, number: int) -> None:
        """Ask the agent to flush and end on the first signal, send the second to its process, and kill on the third."""
        assert self._process is not None and self._incarnation is not None
        self._signals += 1
        if self._signals == 1:
            has_sdk = self._incarnation.sessions.live is not None
            self._incarnation.begin_shutdown()
            self._send(signal.SIGTERM if has_sdk else number)
            asyncio.get_running_loop().call_later(self._options.grace_seconds, self._send, signal.SIGKILL)
        else:
            self._send(number if self._signals == 2 else signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                os.kill(self._process.pid, number)

    def _restore(self, welcome: Welcome) -> None:
        """Restore state folders that are empty or half restored. Others are left as they are until the SDK connects."""
        for root in self._roots:
            root.path.mkdir(parents=True, exist_ok=True)
        key = AgentKey(bytes.fromhex(welcome.key))
        blobs, parent = self._authority.blobs, welcome.parent
        if parent is None:
            root_actions(self._roots, welcome, None)
            return
        loaded = parent_checkpoint.load(blobs, key, welcome.namespace, welcome.agent, parent)
        to_restore = self._roots_to_restore(welcome, parent, loaded.manifest)
        if to_restore:
            marker = ready_marker(welcome, f"epoch-{welcome.epoch}", parent)
            with loaded.reader(blobs, key) as reader:
                restore_files(reader, to_restore, marker, self._failpoints)
            _report(f"restored {', '.join(root.mount_path for root in to_restore)} from {parent.name}")

    def _roots_to_restore(self, welcome: Welcome, parent: CheckpointRef, manifest: Manifest) -> list[Root]:
        found: list[Root] = []
        for root in self._roots:
            try:
                actions = root_actions([root], welcome, manifest)
            except TargetNotEmpty as error:
                raise TargetNotEmpty(
                    f"{root.mount_path} contains files that are not from a run of agent {welcome.agent}, and "
                    f"checkpoint {parent.name} exists: nothing was overwritten; empty the folder to restore the "
                    "checkpoint, or choose another name with --agent to keep the files and start fresh"
                ) from error
            found += [each for each, action in actions.items() if action == "restore"]
        return found

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


def _reclaim_terminal() -> None:
    """Make this process the terminal's foreground process again, after the agent owned the terminal."""
    if not sys.stdin or not os.isatty(0):
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, before)


def _report(text: str) -> None:
    print(f"savepoint: {text}", file=sys.stderr, flush=True)
