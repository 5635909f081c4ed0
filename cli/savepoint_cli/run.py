"""``savepoint run``: run an agent on this machine, with the sidecar's work done by a supervisor process around it.

It runs the command once and returns its exit status. To restart the agent, run the same command again.
"""

import asyncio
import fcntl
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
from savepoint.storage.directory import DirectoryStore
from savepoint_sidecar.authority.local import LocalAuthority, LocalClock, LocalConfig
from savepoint_sidecar.settings import log_level_of

from savepoint_cli.key import key_path, master_key
from savepoint_cli.run_options import RunOptions, dns_label, own_file_patterns
from savepoint_cli.supervisor import Supervisor, utc_now

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
    logging.basicConfig(level=log_level_of(default="WARNING"), format="savepoint: %(message)s", stream=sys.stderr)
    agent = dns_label(options.agent)
    store = DirectoryStore(options.store, create=True)
    stage = stage_layout.laptop_stage(options.store.absolute(), agent)
    stage.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _agent_lock(stage_layout.laptop_lock(stage), options) as holder:
        if holder is not None:
            print(
                f"error: agent {agent} is already running: {holder}; stop it, or choose another name with --agent",
                file=sys.stderr,
            )
            return EXIT_ALREADY_RUNNING
        exclude = (*options.exclude, *own_file_patterns(options))
        config = LocalConfig(options.interval_seconds, PolicyTerms(exclude=exclude))
        authority = LocalAuthority.open(
            store,
            agent,
            master_key(key_path(), create=True),
            config,
            LocalClock(utc_now, secrets.token_bytes),
            incarnation=f"laptop-{secrets.token_hex(16)}",
            node=socket.gethostname(),
        )
        with _socket_path(stage) as socket_path:
            return asyncio.run(Supervisor(options, authority, stage, socket_path).run())


@contextmanager
def _agent_lock(path: Path, options: RunOptions) -> Iterator[str | None]:
    """Hold the agent's lock. Yields None, or a description of the process that holds it already."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield file.read(4096).strip() or "another process"
            return
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {utc_now():%Y-%m-%d %H:%M:%S} UTC ({' '.join(options.command)[:200]})\n")
        file.flush()
        yield None


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
