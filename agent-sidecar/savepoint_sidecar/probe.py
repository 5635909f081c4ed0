"""The short commands that kubelet runs in the sidecar's container: the readiness probe and the preStop hook.

Each starts a Python process of its own, so this module imports as little as possible.
"""

import os
import socket
import time
from pathlib import Path
from typing import Final

from savepoint.contract import stage_layout
from savepoint.contract.names import ENV_SOCKET, ENV_STAGE, SOCKET_PATH, STAGE_DIRECTORY

READY_SECONDS: Final = 3.0
REQUEST_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.05


def ready(timeout_seconds: float = READY_SECONDS) -> int:
    """Return 0 once the agent's socket is served, 1 if it is not served in time.

    It waits because the agent's container starts only after a successful probe, and kubelet repeats the probe only a
    second later.
    """
    deadline = time.monotonic() + timeout_seconds
    while not _is_served():
        if time.monotonic() > deadline:
            return 1
        time.sleep(POLL_SECONDS)
    return 0


def _is_served() -> bool:
    try:
        answer = _send(
            Path(os.environ.get(ENV_SOCKET, SOCKET_PATH)), b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n"
        )
    except OSError:
        return False
    return b" 200 " in answer.partition(b"\r\n")[0]


def prestop() -> int:
    """Tell the running sidecar that the pod is stopping. Always return 0: a failed hook would only add an Event."""
    try:
        _send(stage_layout.private_socket(Path(os.environ.get(ENV_STAGE, STAGE_DIRECTORY))), b"prestop\n")
    except OSError as error:
        print(f"cannot reach the sidecar: {error}")  # noqa: T201 - for a person who runs the command
    return 0


def _send(path: Path, request: bytes) -> bytes:
    """Send the request to a Unix socket and return the start of its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REQUEST_SECONDS)
        connection.connect(str(path))
        connection.sendall(request)
        return connection.recv(4096)
