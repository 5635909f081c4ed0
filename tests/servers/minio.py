"""A MinIO server for tests: the built binary over one folder, without a console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.programs import program
from tests.servers.process import HOST, free_ports, responds, running, server_folder
from tests.servers.s3 import S3Server

PROGRAMS = ("minio",)
ACCESS_KEY = "savepoint-admin"
SECRET_KEY = "savepoint-secret"
REGION = "us-east-1"


@contextmanager
def minio_server(folder: Path | None = None) -> Iterator[S3Server]:
    """Yield a running server with its data and its log in the folder. Raises ServerError."""
    binary = program("minio")
    with server_folder(folder, "minio") as folder:
        (folder / "data").mkdir(exist_ok=True)
        [port] = free_ports(1)
        endpoint = f"http://{HOST}:{port}"
        command = [str(binary), "server", "--quiet", "--address", f"{HOST}:{port}"]
        environment = {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_REGION": REGION,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "1",  # without it, MinIO refuses a folder on the root disk
        }
        # MinIO's health endpoints return 200 before its users are loaded. Until then it answers 503 with
        # Retry-After: 60, and minio-py sleeps for that minute. Once they are loaded, an anonymous request gets 403.
        ready = responds(endpoint, status=403)
        with running("minio", [*command, str(folder / "data")], folder, ready, environment=environment) as process:
            yield S3Server(endpoint, ACCESS_KEY, SECRET_KEY, REGION, process)
