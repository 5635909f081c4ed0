"""A versitygw server for tests: the second implementation of S3, over a plain folder.

What it is: the built binary with its posix backend. What it is not: a server to keep data in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.programs import program
from tests.servers.process import HOST, answers, free_ports, running, server_room
from tests.servers.s3 import S3Server

PROGRAMS = ("versitygw",)
ACCESS_KEY = "savepoint-admin"
SECRET_KEY = "savepoint-secret"
REGION = "us-east-1"


@contextmanager
def versitygw_server(room: Path | None = None) -> Iterator[S3Server]:
    """A running server with its data and log in room. Raises ServerError."""
    binary = program("versitygw")
    with server_room(room, "versitygw") as place:
        for name in ("data", "metadata"):
            (place / name).mkdir(exist_ok=True)
        [port] = free_ports(1)
        endpoint = f"http://{HOST}:{port}"
        command = [str(binary), "--port", f"{HOST}:{port}", "--region", REGION, "--health", "/health"]
        environment = {"ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY}
        # Metadata in files of their own: a tmpfs of an older kernel keeps no user attributes.
        backend = ["posix", "--sidecar", str(place / "metadata"), str(place / "data")]
        ready = answers(f"{endpoint}/health")
        with running("versitygw", [*command, *backend], place, ready, environment=environment) as process:
            yield S3Server(endpoint, ACCESS_KEY, SECRET_KEY, REGION, process)
