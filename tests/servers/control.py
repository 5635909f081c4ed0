"""What a control server stands on in a test: a store in a real S3 server, and TLS for localhost.

What it is not: the server; who may connect, and what is told, comes from ``tests.fakes.operator_ports``.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from savepoint.repository.format.keys import MasterKey
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import Presigner
from savepoint_operator.model.ports import OpenStore

from tests.fakes.operator_ports import Stores
from tests.servers.pki import Authority
from tests.servers.s3 import S3Server


@dataclass(frozen=True)
class Ground:
    """For a server on loopback."""

    stores: Stores
    authority: Authority
    served: ssl.SSLContext


@contextmanager
def ground(server: S3Server, bucket: str, folder: Path) -> Iterator[Ground]:
    """An empty store in the bucket, which is closed afterwards; keys lie in folder."""
    config, authority, master = server.config(bucket), Authority(), MasterKey(bytes(range(32)))
    with closing(S3Store(config)) as objects:
        stores = Stores(objects, master)
        stores.store = OpenStore("default", objects, Presigner(config, lambda: datetime.now(UTC)), master)
        yield Ground(stores, authority, authority.serving(["localhost", "127.0.0.1"], folder))
