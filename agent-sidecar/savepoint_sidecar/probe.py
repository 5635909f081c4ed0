"""The short commands that kubelet runs in the sidecar's container: is it ready, and: the pod is stopping.

They start a Python of their own every time, so they import next to nothing.
"""

import os
import socket
import time
from pathlib import Path
from typing import Final

from savepoint.contract import stage_layout
from savepoint.contract.names import ENV_SOCKET, ENV_STAGE, SOCKET_PATH, STAGE_DIRECTORY

TIMEOUT_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.05


def ready(patience_seconds: float = 3.0) -> int:
    """0 once the agent's socket is served. It waits a while for that: the agent starts when this says so, and kubelet
    asks again only a second later."""
    until = time.monotonic() + patience_seconds
    while not _served():
        if time.monotonic() > until:
            return 1
        time.sleep(POLL_SECONDS)
    return 0


def _served() -> bool:
    try:
        answer = _ask(
            Path(os.environ.get(ENV_SOCKET, SOCKET_PATH)), b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n"
        )
    except OSError:
        return False
    return b" 200 " in answer.partition(b"\r\n")[0]


def prestop() -> int:
    """Tell the running sidecar that the pod is stopping; always 0: a hook that fails only makes noise."""
    try:
        _ask(stage_layout.private_socket(Path(os.environ.get(ENV_STAGE, STAGE_DIRECTORY))), b"prestop\n")
    except OSError as error:
        print(f"the sidecar could not be told: {error}")  # noqa: T201 - kubelet shows it in an Event
    return 0


def _ask(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(str(path))
        connection.sendall(request)
        return connection.recv(4096)
