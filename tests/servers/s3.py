"""An S3 server that a test talks to.

What it is: its address and credentials, the same for every implementation. What it is not: a client; `client()` hands
out minio-py's, which is what the operator uses, and `config()` what our own stores are made of.
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
    """Where a server listens and the key pair of its administrator."""

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
        """This bucket, made where there is none."""
        client = self.client()
        if not client.bucket_exists(name):
            client.make_bucket(name)
        return name

    def config(self, bucket: str) -> S3Config:
        """A new, empty part of the bucket."""
        return S3Config(
            endpoint=self.endpoint,
            bucket=self.bucket(bucket),
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=self.region,
            prefix=f"{secrets.token_hex(8)}/",
        )
