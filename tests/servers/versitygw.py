"""A versitygw server for tests: a second implementation of S3, with its posix backend over a plain folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.programs import program
from tests.servers.process import HOST, free_ports, responds, running, server_folder
from tests.servers.s3 import S3Server

PROGRAMS = ("versitygw",)
ACCESS_KEY = "savepoint-admin"
SECRET_KEY = "savepoint-secret"
REGION = "us-east-1"


@contextmanager
def versitygw_server(folder: Path | None = None) -> Iterator[S3Server]:
    """Yield a running server with its data and its log in the folder. Raises ServerError."""
    binary = program("versitygw")
    with server_folder(folder, "versitygw") as folder:
        for name in ("data", "metadata"):
            (folder / name).mkdir(exist_ok=True)
        [port] = free_ports(1)
        endpoint = f"http://{HOST}:{port}"
        command = [str(binary), "--port", f"{HOST}:{port}", "--region", REGION, "--health", "/health"]
        environment = {"ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY}
        # Metadata in separate files: tmpfs on an older kernel does not support user attributes.
        backend = ["posix", "--sidecar", str(folder / "metadata"), str(folder / "data")]
        ready = responds(f"{endpoint}/health")
        with running("versitygw", [*command, *backend], folder, ready, environment=environment) as process:
            yield S3Server(endpoint, ACCESS_KEY, SECRET_KEY, REGION, process)
