"""``savepoint run``: a supervisor with the sidecar part in its own process, around one agent on this machine.

It starts the command once and passes its exit status on; whoever wants it started again runs it again.
"""

import asyncio
import fcntl
import glob
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from savepoint.contract.control_protocol import PolicyTerms, Welcome
from savepoint.contract.names import AGENT_NAME_MAX, ENV_SOCKET, ENV_STAGE
from savepoint.repository.format.canonical import time_of
from savepoint.repository.format.keys import AgentKey
from savepoint.storage.directory import DirectoryStore
from savepoint_sidecar.authority.local import LocalAuthority, LocalConfig
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.incarnation import Incarnation
from savepoint_sidecar.restore.file_restore import marker_of, plan, restore_files
from savepoint_sidecar.settings import failpoint_of, log_level_of
from savepoint_sidecar.stage.components import prepare_stage

from savepoint_cli import child
from savepoint_cli.key import key_path, master_key

STAGE: Final = ".stage"
RELEASED: Final = "released.json"
SOCKET_PATH_MAX: Final = 100
"""A Unix socket's path has room for little more."""
EXIT_HELD: Final = 75

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What the user asked for."""

    store: Path
    agent: str
    command: tuple[str, ...]
    states: tuple[Path, ...] = ()
    exclude: tuple[str, ...] = ()
    interval_seconds: float = 30.0
    grace_seconds: float = 25.0


def agent_name(command: list[str]) -> str:
    """The name of the script that the command runs, or of its program, as an agent's name."""
    scripts = [Path(each).stem for each in command if each.endswith((".py", ".sh"))]
    return plain_name(scripts[0] if scripts else Path(command[0]).name)


def plain_name(text: str) -> str:
    """As a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:AGENT_NAME_MAX].strip("-") or "agent"


def run(options: RunOptions) -> int:
    """Run the command to its end; its exit status."""
    logging.basicConfig(level=log_level_of(default="WARNING"), format="savepoint: %(message)s", stream=sys.stderr)
    agent = plain_name(options.agent)
    store = DirectoryStore(options.store, create=True)
    stage = options.store.absolute() / STAGE / agent
    stage.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(stage / "lock", options) as holder:
        if holder is not None:
            _say(f"agent {agent} is being run already by {holder}; stop it, or name another with --agent")
            return EXIT_HELD
        exclude = (*options.exclude, *own_paths(options))
        terms = LocalConfig(options.interval_seconds, PolicyTerms(exclude=exclude))
        authority = LocalAuthority.open(
            store,
            agent,
            master_key(key_path(), create=True),
            terms,
            incarnation=f"laptop-{secrets.token_hex(16)}",
            node=socket.gethostname(),
            now=_now,
            random_bytes=secrets.token_bytes,
        )
        with _socket_path(stage) as socket_path:
            return asyncio.run(_Supervisor(options, authority, stage, socket_path).run())


class _Supervisor:
    def __init__(self, options: RunOptions, authority: LocalAuthority, stage: Path, socket_path: Path) -> None:
        self._options, self._authority, self._stage, self._socket = options, authority, stage, socket_path
        self._roots = roots_of(options.states)
        self._failpoints = Failpoints(failpoint_of())
        self._process: subprocess.Popen[bytes] | None = None
        self._incarnation: Incarnation | None = None
        self._signals = 0

    async def run(self) -> int:
        welcome = await self._authority.welcome()
        prepare_stage(self._stage, welcome.run)
        cut_sequence = self._left_clean()
        await asyncio.to_thread(self._restore, welcome)
        terms = IncarnationConfig(
            roots=self._roots,
            stage=self._stage,
            socket_path=self._socket,
            pod_uid=f"epoch-{welcome.epoch}",
            grace_seconds=self._options.grace_seconds,
            cut_sequence=cut_sequence,
        )
        edges = Clock(_now, time.monotonic, time.time_ns, lambda: secrets.token_hex(16))
        self._incarnation = Incarnation(self._authority, terms, edges, self._failpoints)
        await self._incarnation.start()
        _say(_greeting(welcome))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        self._process = self._start()
        try:
            status = await asyncio.to_thread(self._process.wait)
        finally:
            _take_terminal()
            await self._incarnation.end()
            cut_now = self._incarnation.checkpointer.cut
        if self._incarnation.stands_at_cut and cut_now is not None:
            (self._stage / "sidecar" / RELEASED).write_text(json.dumps({"sequence": cut_now.ref.sequence}))
        return status if status >= 0 else 128 - status

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *self._options.command]
        environment = {**os.environ, ENV_SOCKET: str(self._socket), ENV_STAGE: str(self._stage)}
        return subprocess.Popen(command, env=environment, process_group=0)  # noqa: S603 - what it is for

    def _signalled(self, number: int) -> None:
        """The first asks the agent for its state and its end; the second insists; the third kills."""
        assert self._process is not None and self._incarnation is not None
        self._signals += 1
        if self._signals == 1:
            has_sdk = self._incarnation.sessions.live is not None
            self._incarnation.begin_end()
            self._signal(signal.SIGTERM if has_sdk else number)
            asyncio.get_running_loop().call_later(self._options.grace_seconds, self._signal, signal.SIGKILL)
        else:
            self._signal(number if self._signals == 2 else signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                os.kill(self._process.pid, number)

    def _restore(self, welcome: Welcome) -> None:
        """Bring back state folders that are empty or half restored; others stand as they are until connect()."""
        for root in self._roots:
            root.path.mkdir(parents=True, exist_ok=True)
        key = AgentKey(bytes.fromhex(welcome.key))
        blobs, parent = self._authority.blobs, welcome.parent
        marker = marker_of(welcome, f"epoch-{welcome.epoch}", parent)
        if parent is None:
            plan(self._roots, welcome, None)
            return
        loaded = parent_checkpoint.load(blobs, key, welcome.namespace, welcome.agent, parent)
        actions = plan(self._roots, welcome, loaded.manifest)
        lost = [root for root, action in actions.items() if action == "restore"]
        if lost:
            with loaded.reader(blobs, key) as reader:
                restore_files(reader, lost, marker, self._failpoints)
            _say(f"{', '.join(root.mount_path for root in lost)} came back from {parent.name}")

    def _left_clean(self) -> int | None:
        """The cut with which the run before ended in order, so that changes of files since are the user's own."""
        path = self._stage / "sidecar" / RELEASED
        try:
            return int(json.loads(path.read_text())["sequence"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            path.unlink(missing_ok=True)


def roots_of(states: tuple[Path, ...]) -> tuple[Root, ...]:
    """State folders as roots, named after their last element."""
    roots: list[Root] = []
    for path in states:
        whole = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the user wrote them
        base = plain_name(whole.name)
        taken = {root.name for root in roots}
        name = next(each for each in (base, *(f"{base}-{n}" for n in range(2, 1000))) if each not in taken)
        roots.append(Root(name, str(whole), whole.resolve(), persistent=True))
    return tuple(roots)


def own_paths(options: RunOptions) -> tuple[str, ...]:
    """Patterns that keep the store and its key out of a state folder that they happen to lie in."""
    ours = (options.store.resolve(), key_path().parent.resolve())
    return tuple(
        f"{root.mount_path.rstrip('/')}/{glob.escape(str(path.relative_to(root.path)))}"
        for root in roots_of(options.states)
        for path in ours
        if path.is_relative_to(root.path) and path != root.path
    )


def _greeting(welcome: Welcome) -> str:
    if welcome.parent is None:
        return f"agent {welcome.agent} starts fresh (epoch {welcome.epoch})"
    age = _now() - time_of(welcome.parent.time)
    return (
        f"agent {welcome.agent} goes on from {welcome.parent.name}, {_age(int(age.total_seconds()))} old "
        f"(epoch {welcome.epoch})"
    )


def _age(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{max(0, seconds)}s"


@contextmanager
def _held(path: Path, options: RunOptions) -> Iterator[str | None]:
    """Hold the agent's lock; yields who holds it otherwise."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield file.read(4096).strip() or "another process"
            return
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {_now():%Y-%m-%d %H:%M:%S} UTC ({' '.join(options.command)[:200]})\n")
        file.flush()
        yield None


@contextmanager
def _socket_path(stage: Path) -> Iterator[Path]:
    """Where the agent's socket is: in the stage, or in a folder of its own where that path would be too long."""
    path = stage / "agent.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="savepoint-"))
    try:
        yield folder / "agent.sock"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_terminal() -> None:
    if not sys.stdin or not os.isatty(0):
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, before)


def _now() -> datetime:
    return datetime.now(UTC)


def _say(text: str) -> None:
    print(f"savepoint: {text}", file=sys.stderr, flush=True)
