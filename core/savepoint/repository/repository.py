"""One agent's repository: its key, its manifests, its part of the store; and the identity of the store around it.

It does not decide what is committed (``lineage``) and does not touch content (``writer``, ``reader``).
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from savepoint.errors import IntegrityError, KeyMismatch, NotAdopted, ObjectExists, ObjectMissing
from savepoint.repository.format import canonical
from savepoint.repository.format.canonical import FORMAT, Fields
from savepoint.repository.format.keys import AgentKey, MasterKey
from savepoint.repository.format.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    manifest_name,
    open_manifest,
    seal_manifest,
)
from savepoint.repository.format.seal import NONCE_BYTES
from savepoint.storage.retry import holds
from savepoint.storage.store import ObjectStore
from savepoint.storage.wrapper import Prefixed

STORE_KEY = "savepoint.json"
REPOSITORY_KEY = "repository.json"
SALT_BYTES = 32

_MAX_IDENTITY_BYTES = 4096


def open_store(store: ObjectStore, owner: str, master: MasterKey) -> None:
    """Claim an empty store for ``owner``, or check that it is his and under this key.

    NotAdopted if it belongs to another owner, KeyMismatch if it was written under another key. Never regenerated.
    """
    identity = canonical.encode({"format": FORMAT, "keyCheck": master.check, "owner": owner})
    found, check = _identity(_get_or_create(store, STORE_KEY, lambda: identity))
    if found != owner:
        raise NotAdopted(f"the store belongs to {found}, not to {owner}; use a prefix of its own for each cluster")
    _require_key(check, master)


def read_store(store: ObjectStore, master: MasterKey) -> str:
    """Check that the store was written under this key, and write nothing; its owner.

    ObjectMissing if there is no store, KeyMismatch if it was written under another key.
    """
    owner, check = _identity(store.get(STORE_KEY, max_bytes=_MAX_IDENTITY_BYTES))
    _require_key(check, master)
    return owner


class Repository:
    """The repository of ``namespace``/``agent``, below its own prefix."""

    def __init__(self, store: ObjectStore, namespace: str, agent: str, key: AgentKey) -> None:
        """``store`` is already the agent's own part; see open and open_or_create for the usual ways in."""
        self.store, self.namespace, self.agent, self.key = store, namespace, agent, key

    def __repr__(self) -> str:
        return f"Repository({self.namespace}/{self.agent})"

    @classmethod
    def open(cls, store: ObjectStore, namespace: str, agent: str, master: MasterKey) -> "Repository":
        """Open the agent's repository in the whole ``store``, and write nothing. ObjectMissing if there is none."""
        own = Prefixed(store, f"{namespace}/{agent}/")
        return cls._of(own, own.get(REPOSITORY_KEY, max_bytes=_MAX_IDENTITY_BYTES), namespace, agent, master)

    @classmethod
    def open_or_create(
        cls,
        store: ObjectStore,
        namespace: str,
        agent: str,
        master: MasterKey,
        *,
        now: datetime,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> "Repository":
        """Open the agent's repository in the whole ``store``; make its salt if there is none yet."""
        own = Prefixed(store, f"{namespace}/{agent}/")

        def identity() -> bytes:
            return canonical.encode(
                {
                    "agent": agent,
                    "created": canonical.time_text(now),
                    "format": FORMAT,
                    "namespace": namespace,
                    "salt": random_bytes(SALT_BYTES).hex(),
                }
            )

        return cls._of(own, _get_or_create(own, REPOSITORY_KEY, identity), namespace, agent, master)

    @classmethod
    def _of(cls, own: ObjectStore, content: bytes, namespace: str, agent: str, master: MasterKey) -> "Repository":
        where = f"{namespace}/{agent}/{REPOSITORY_KEY}"
        fields = Fields(canonical.decode_canonical(content, where), where)
        fields.format()
        found = (fields.text("namespace"), fields.text("agent"))
        fields.time("created")
        salt = bytes.fromhex(fields.hexadecimal("salt", SALT_BYTES * 2))
        fields.end()
        if found != (namespace, agent):
            raise IntegrityError(f"{where} belongs to {'/'.join(found)}", where)
        return cls(own, namespace, agent, master.agent_key(salt, namespace, agent))

    def read_manifest(self, name: str, size: int) -> Manifest:
        """The manifest of this name and size, checked."""
        key = manifest_key(name)
        content = self.store.get(key, max_bytes=MAX_MANIFEST_BYTES)
        if len(content) != size:
            raise IntegrityError(f"{key} has {len(content)} bytes, its record says {size}", key)
        return open_manifest(content, self.key, self.namespace, self.agent, name)

    def write_manifest(
        self, manifest: Manifest, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> tuple[str, int]:
        """Seal and store a manifest; its name and size."""
        return self.put_manifest(seal_manifest(manifest, self.key, random_bytes(NONCE_BYTES)))

    def put_manifest(self, content: bytes) -> tuple[str, int]:
        """Store a sealed manifest; one that is there already with these bytes is fine."""
        name = manifest_name(content)
        try:
            self.store.put_new(manifest_key(name), content)
        except ObjectExists as error:
            if not holds(self.store, manifest_key(name), content):
                key = manifest_key(name)
                raise IntegrityError(f"{key} holds other bytes than its name says", key) from error
        return name, len(content)


def manifest_key(name: str) -> str:
    """Where the manifest of this name is."""
    return f"manifests/{name}"


def pack_key(name: str) -> str:
    """Where the pack of this name is."""
    return f"packs/{name}"


def _identity(content: bytes) -> tuple[str, str]:
    """(owner, key check) of a store."""
    fields = Fields(canonical.decode_canonical(content, STORE_KEY), STORE_KEY)
    fields.format()
    check, owner = fields.hexadecimal("keyCheck"), fields.text("owner")
    fields.end()
    return owner, check


def _require_key(check: str, master: MasterKey) -> None:
    if check != master.check:
        raise KeyMismatch("the store was written under another master key; give Savepoint the key it was made with")


def _get_or_create(store: ObjectStore, key: str, content: Callable[[], bytes]) -> bytes:
    with suppress(ObjectMissing):
        return store.get(key, max_bytes=_MAX_IDENTITY_BYTES)
    with suppress(ObjectExists):
        store.put_new(key, content())
    return store.get(key, max_bytes=_MAX_IDENTITY_BYTES)
