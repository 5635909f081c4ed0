"""The address and the credentials of an S3 server for tests, the same for every implementation.

``client()`` returns minio-py's client, which the operator uses, too; ``config()`` configures Savepoint's own stores.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from minio import Minio
from savepoint.storage.signature import S3Config

from tests.servers.process import Process


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server and the key pair of its administrator."""

    endpoint: str
    """URL without a path, http://HOST:PORT."""
    access_key: str
    secret_key: str = field(repr=False)
    region: str
    process: Process = field(repr=False)
    """For tests that kill the server or read its log."""

    def client(self) -> Minio:
        parts = urlsplit(self.endpoint)
        return Minio(
            parts.netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=parts.scheme == "https",
            region=self.region,
        )

    def bucket(self, name: str) -> str:
        """Create the bucket unless it exists, and return its name."""
        client = self.client()
        if not client.bucket_exists(name):
            client.make_bucket(name)
        return name

    def config(self, bucket: str) -> S3Config:
        """Return the configuration of an empty store: a new prefix in the bucket."""
        return S3Config(
            endpoint=self.endpoint,
            bucket=self.bucket(bucket),
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=self.region,
            prefix=f"{secrets.token_hex(8)}/",
        )
