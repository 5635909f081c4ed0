"""One agent's repository: its key, its manifests and its part of the store; and the identity of the store itself.

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
from savepoint.repository.format.manifest import Manifest, manifest_name, seal_manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.format.seal import NONCE_BYTES
from savepoint.repository.read.manifest import load_manifest
from savepoint.storage.retry import has_content
from savepoint.storage.store import ObjectStore
from savepoint.storage.wrapper import Prefixed

STORE_KEY = "savepoint.json"
REPOSITORY_KEY = "repository.json"
SALT_BYTES = 32

_MAX_IDENTITY_BYTES = 4096


def open_store(store: ObjectStore, owner: str, master: MasterKey) -> None:
    """Claim an empty store for ``owner``, or check that it belongs to ``owner`` and was written under this key.

    An existing identity is never replaced.

    Raises:
        NotAdopted: The store belongs to another owner.
        KeyMismatch: The store was written under another master key.
    """
    identity = canonical.encode({"format": FORMAT, "keyCheck": master.check, "owner": owner})
    found, check = _identity(_get_or_create(store, STORE_KEY, lambda: identity))
    if found != owner:
        raise NotAdopted(f"the store belongs to {found}, not to {owner}; use a separate prefix for each cluster")
    _require_key(check, master)


def read_store(store: ObjectStore, master: MasterKey) -> str:
    """Check that the store was written under this key, without writing anything, and return its owner.

    Raises:
        ObjectMissing: No store has been created here.
        KeyMismatch: The store was written under another master key.
    """
    owner, check = _identity(store.get(STORE_KEY, max_bytes=_MAX_IDENTITY_BYTES))
    _require_key(check, master)
    return owner


class Repository:
    """The repository of ``namespace``/``agent``, below its own prefix."""

    def __init__(self, store: ObjectStore, namespace: str, agent: str, key: AgentKey) -> None:
        """Use ``open`` or ``open_or_create`` unless ``store`` is already limited to the agent's own prefix."""
        self.store, self.namespace, self.agent, self.key = store, namespace, agent, key

    def __repr__(self) -> str:
        return f"Repository({self.namespace}/{self.agent})"

    @classmethod
    def open(cls, store: ObjectStore, namespace: str, agent: str, master: MasterKey) -> "Repository":
        """Open the agent's repository in the whole ``store`` without writing. ObjectMissing if it does not exist."""
        own = Prefixed(store, f"{namespace}/{agent}/")
        return cls._from_identity(own, own.get(REPOSITORY_KEY, max_bytes=_MAX_IDENTITY_BYTES), namespace, agent, master)

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
        """Open the agent's repository in the whole ``store``; create its salt if it has none yet."""
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

        return cls._from_identity(own, _get_or_create(own, REPOSITORY_KEY, identity), namespace, agent, master)

    @classmethod
    def _from_identity(
        cls, own: ObjectStore, content: bytes, namespace: str, agent: str, master: MasterKey
    ) -> "Repository":
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
        """Return the verified manifest of this name and size; raises what ``load_manifest`` raises."""
        return load_manifest(self.store, self.key, self.namespace, self.agent, name=name, size=size)

    def write_manifest(
        self, manifest: Manifest, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> tuple[str, int]:
        """Seal and store a manifest; return its name and size in bytes."""
        return self.put_manifest(seal_manifest(manifest, self.key, random_bytes(NONCE_BYTES)))

    def put_manifest(self, content: bytes) -> tuple[str, int]:
        """Store a sealed manifest, unless it is stored already; return its name and size in bytes."""
        name = manifest_name(content)
        key = manifest_key(name)
        try:
            self.store.put_new(key, content)
        except ObjectExists as error:
            if not has_content(self.store, key, content):
                raise IntegrityError(f"{key} holds other bytes than its name says", key) from error
        return name, len(content)


def _identity(content: bytes) -> tuple[str, str]:
    """Return (owner, key check) of a store."""
    fields = Fields(canonical.decode_canonical(content, STORE_KEY), STORE_KEY)
    fields.format()
    check, owner = fields.hexadecimal("keyCheck"), fields.text("owner")
    fields.end()
    return owner, check


def _require_key(check: str, master: MasterKey) -> None:
    if check != master.check:
        raise KeyMismatch("the store was written under another master key; configure the key it was created with")


def _get_or_create(store: ObjectStore, key: str, content: Callable[[], bytes]) -> bytes:
    with suppress(ObjectMissing):
        return store.get(key, max_bytes=_MAX_IDENTITY_BYTES)
    with suppress(ObjectExists):
        store.put_new(key, content())
    return store.get(key, max_bytes=_MAX_IDENTITY_BYTES)
