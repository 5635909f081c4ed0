"""``savepoint run``: run an agent on this machine, with the sidecar's work done by a supervisor process around it.

It runs the command once and returns its exit status. To restart the agent, run the same command again.
"""

import asyncio
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import PolicyTerms
from savepoint.contract.vocabulary import OnContainerRestart
from savepoint.storage.directory import DirectoryStore
from savepoint_sidecar.authority.local import LocalAuthority, LocalClock, LocalConfig, StartFrom
from savepoint_sidecar.settings import log_level_of

from savepoint_cli.agent_lock import AlreadyRunning, agent_lock
from savepoint_cli.key import key_path, master_key
from savepoint_cli.laptop_messages import LaptopFormatter, laptop_text
from savepoint_cli.leftovers import end_leftovers, find_leftovers
from savepoint_cli.run_options import RunOptions, check_options, own_file_patterns
from savepoint_cli.state_folders import dns_label, state_roots
from savepoint_cli.state_restore import match
from savepoint_cli.supervisor import Supervisor, report, utc_now

SOCKET_PATH_MAX_BYTES: Final = 100
"""The address of a Unix socket has room for little more."""
EXIT_ALREADY_RUNNING: Final = 75


def run(options: RunOptions) -> int:
    """Restore the agent's state folders, then run its command to the end with checkpoints.

    Args:
        options: The store, the agent and the command.

    Returns:
        The command's exit status, 128 plus the signal's number if a signal ended it, or 75 if the agent is already
        running.

    Raises:
        SavepointError: The store cannot be used, or the state folders cannot be restored.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LaptopFormatter("savepoint: %(message)s"))
    logging.basicConfig(level=log_level_of(default="WARNING"), handlers=[handler])
    check_options(options)
    agent = dns_label(options.agent)
    store = DirectoryStore(options.store, create=True)
    stage = stage_layout.laptop_stage(options.store.absolute(), agent)
    stage.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with agent_lock(stage_layout.laptop_lock(stage), options.command, utc_now()) as lock:
            return _run_locked(options, agent, store, stage, lock)
    except AlreadyRunning as holder:
        return _refuse(f"agent {agent} is already running: {holder}; stop it, or choose another name with --agent")


def _run_locked(options: RunOptions, agent: str, store: DirectoryStore, stage: Path, lock: int) -> int:
    record = stage_layout.laptop_processes(stage)
    stuck = end_leftovers(lambda: find_leftovers(record, stage), report)
    if stuck:
        return _refuse(
            f"agent {agent} is still running from an earlier run and cannot be ended: process "
            f"{', '.join(map(str, stuck))}; end it, then start again"
        )
    config = LocalConfig(options.interval_seconds, _terms(options), retention=options.retention)
    authority = LocalAuthority.open(
        store,
        agent,
        master_key(key_path(), create=True),
        config,
        LocalClock(utc_now, secrets.token_bytes),
        incarnation=f"laptop-{secrets.token_hex(16)}",
        node=socket.gethostname(),
        start_from=_start_from(options),
    )
    with _socket_path(stage) as socket_path:
        return _supervise(Supervisor(options, authority, stage, socket_path, lock))


def _supervise(supervisor: Supervisor) -> int:
    """Run the supervisor. Once the command has started, only the command decides about the exit status."""
    try:
        return asyncio.run(supervisor.run())
    except BaseException as error:
        processes = supervisor.processes
        if processes is None:
            raise
        if not processes.exit_status.done():
            cause = f"{type(error).__name__}: {laptop_text(str(error))}"
            report(f"checkpoints have stopped: {cause}; the agent continues without them")
        return processes.wait_without_loop()


def _terms(options: RunOptions) -> PolicyTerms:
    """Return the options as a policy on a cluster would say them."""
    restart = OnContainerRestart.RESTORE if options.restores_files else OnContainerRestart.KEEP_LOCAL
    return PolicyTerms(exclude=(*options.exclude, *own_file_patterns(options)), on_container_restart=restart)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_ALREADY_RUNNING


def _start_from(options: RunOptions) -> StartFrom | None:
    name = options.start_from
    roots = state_roots(options.states)
    return StartFrom(name, lambda manifest: match(options, roots, manifest, name)) if name else None


@contextmanager
def _socket_path(stage: Path) -> Iterator[Path]:
    """Yield the path for the agent's socket: in the stage, or in a temporary folder if that path is too long."""
    path = stage_layout.laptop_socket(stage)
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES:
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="savepoint-"))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
