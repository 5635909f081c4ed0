"""A MinIO server for tests.

What it is: the built binary on a folder, one disk, no console. What it is not: a server to keep data in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.programs import program
from tests.servers.process import HOST, answers, free_ports, running, server_room
from tests.servers.s3 import S3Server

PROGRAMS = ("minio",)
ACCESS_KEY = "savepoint-admin"
SECRET_KEY = "savepoint-secret"
REGION = "us-east-1"


@contextmanager
def minio_server(room: Path | None = None) -> Iterator[S3Server]:
    """A running server with its data and log in room. Raises ServerError."""
    binary = program("minio")
    with server_room(room, "minio") as place:
        (place / "data").mkdir(exist_ok=True)
        [port] = free_ports(1)
        endpoint = f"http://{HOST}:{port}"
        command = [str(binary), "server", "--quiet", "--address", f"{HOST}:{port}"]
        environment = {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_REGION": REGION,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "1",  # it refuses a folder on the root disk otherwise
        }
        # Its health pages answer 200 before it knows its users. A request in between is told 503, Retry-After: 60, and
        # minio-py sleeps that minute; only when users are known is a stranger refused.
        ready = answers(endpoint, status=403)
        with running("minio", [*command, str(place / "data")], place, ready, environment=environment) as process:
            yield S3Server(endpoint, ACCESS_KEY, SECRET_KEY, REGION, process)
