"""The Secrets in the operator's own namespace: the master key, and the stores' credentials and CAs. None is logged."""

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
LABELS: Final = {"app.kubernetes.io/name": "savepoint", "app.kubernetes.io/managed-by": "savepoint-operator"}


class Keyring:
    """Reads Secrets by name, and creates the master key once."""

    def __init__(
        self, cluster: ClusterClient, namespace: str, master_secret: str, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._cluster, self._namespace, self._master_secret = cluster, namespace, master_secret
        self._random_bytes = random_bytes

    async def master(self) -> MasterKey:
        """Return the master key; create its Secret if there is none, and never replace an existing one.

        Raises KeyMismatch if the Secret does not hold a master key.
        """
        raw = await self._cluster.get(SECRETS, self._namespace, self._master_secret)
        if raw is None:
            raw = await self._create_master()
        key = fields(raw).get(MASTER_KEY_FIELD, b"")
        if len(key) != KEY_BYTES:
            raise KeyMismatch(
                f"Secret {self._namespace}/{self._master_secret} does not hold a master key of {KEY_BYTES} bytes in "
                f"field {MASTER_KEY_FIELD}: restore the Secret that was exported after the installation"
            )
        return MasterKey(key)

    async def credentials(self, name: str) -> tuple[str, str]:
        """Return a store's (access key, secret key). Raises StoreMisconfigured."""
        found = await self._read(name, "credentialsSecretName")
        access, secret = (
            found.get(field, b"").decode(errors="replace").strip() for field in ("accessKey", "secretKey")
        )
        if not access or not secret:
            raise StoreMisconfigured(f"Secret {self._namespace}/{name} needs the fields accessKey and secretKey")
        return access, secret

    async def ca(self, name: str) -> str:
        """Return a store's CA certificates as PEM. Raises StoreMisconfigured."""
        pem = (await self._read(name, "caSecretName")).get("ca.crt", b"").decode(errors="replace")
        if "BEGIN CERTIFICATE" not in pem:
            raise StoreMisconfigured(f"Secret {self._namespace}/{name} needs the field ca.crt with PEM certificates")
        return pem

    async def _read(self, name: str, field: str) -> dict[str, bytes]:
        raw = await self._cluster.get(SECRETS, self._namespace, name)
        if raw is None:
            raise StoreMisconfigured(
                f"Secret {self._namespace}/{name} does not exist: create it, or correct spec.s3.{field} of the store"
            )
        return fields(raw)

    async def _create_master(self) -> Raw:
        key = base64.b64encode(self._random_bytes(KEY_BYTES)).decode()
        body = {
            "metadata": {"namespace": self._namespace, "name": self._master_secret, "labels": LABELS},
            "type": "Opaque",
            "data": {MASTER_KEY_FIELD: key},
        }
        try:
            return await self._cluster.create(SECRETS, body)
        except Conflict:
            return await self._cluster.get(SECRETS, self._namespace, self._master_secret) or {}


def fields(secret: Raw) -> dict[str, bytes]:
    """Return the decoded fields of a Secret, without those that are not valid base64."""
    decoded: dict[str, bytes] = {}
    for name, text in (secret.get("data") or {}).items():
        try:
            decoded[name] = base64.b64decode(text or "", validate=True)
        except (binascii.Error, ValueError):
            continue
    return decoded
