"""The Secrets of the operator's own namespace: master key, credentials and CAs of stores. It logs none of them."""

import base64
import binascii
from collections.abc import Callable
from typing import Final

from savepoint.errors import KeyMismatch, StoreMisconfigured
from savepoint.repository.format.keys import KEY_BYTES, MasterKey

from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.kinds import SECRETS
from savepoint_operator.reconcile.cluster_client import ClusterClient, Raw

MASTER_KEY_FIELD: Final = "master.key"
MANAGED: Final = {"app.kubernetes.io/name": "savepoint", "app.kubernetes.io/managed-by": "savepoint-operator"}


class Keyring:
    """Reads Secrets by name; makes the master key once."""

    def __init__(
        self, cluster: ClusterClient, namespace: str, master_secret: str, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._cluster, self._namespace, self._master_secret = cluster, namespace, master_secret
        self._random_bytes = random_bytes

    async def master(self) -> MasterKey:
        """The master key; made if there is no Secret yet, never made again. KeyMismatch when the Secret holds none."""
        raw = await self._cluster.get(SECRETS, self._namespace, self._master_secret)
        if raw is None:
            raw = await self._make()
        key = fields(raw).get(MASTER_KEY_FIELD, b"")
        if len(key) != KEY_BYTES:
            raise KeyMismatch(
                f"Secret {self._namespace}/{self._master_secret} holds no master key of {KEY_BYTES} bytes in field "
                f"{MASTER_KEY_FIELD}: put back the Secret that was exported after the installation"
            )
        return MasterKey(key)

    async def credentials(self, name: str) -> tuple[str, str]:
        """(access key, secret key) of a store."""
        found = await self._read(name, "credentialsSecretName")
        access, secret = (
            found.get(field, b"").decode(errors="replace").strip() for field in ("accessKey", "secretKey")
        )
        if not access or not secret:
            raise StoreMisconfigured(f"Secret {self._namespace}/{name} needs the fields accessKey and secretKey")
        return access, secret

    async def ca(self, name: str) -> str:
        """PEM of a store's CA."""
        pem = (await self._read(name, "caSecretName")).get("ca.crt", b"").decode(errors="replace")
        if "BEGIN CERTIFICATE" not in pem:
            raise StoreMisconfigured(f"Secret {self._namespace}/{name} needs the field ca.crt with PEM certificates")
        return pem

    async def _read(self, name: str, field: str) -> dict[str, bytes]:
        raw = await self._cluster.get(SECRETS, self._namespace, name)
        if raw is None:
            raise StoreMisconfigured(
                f"Secret {self._namespace}/{name} does not exist: create it, or mend spec.s3.{field} of the store"
            )
        return fields(raw)

    async def _make(self) -> Raw:
        key = base64.b64encode(self._random_bytes(KEY_BYTES)).decode()
        body = {
            "metadata": {"namespace": self._namespace, "name": self._master_secret, "labels": MANAGED},
            "type": "Opaque",
            "data": {MASTER_KEY_FIELD: key},
        }
        try:
            return await self._cluster.create(SECRETS, body)
        except Conflict:
            return await self._cluster.get(SECRETS, self._namespace, self._master_secret) or {}


def fields(secret: Raw) -> dict[str, bytes]:
    """The decoded fields of a Secret; what is no base64 is left out."""
    decoded: dict[str, bytes] = {}
    for name, text in (secret.get("data") or {}).items():
        try:
            decoded[name] = base64.b64decode(text or "", validate=True)
        except (binascii.Error, ValueError):
            continue
    return decoded
