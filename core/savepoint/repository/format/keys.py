"""The keys of a store and how they derive from each other. No key shows its bytes in a repr, a log or an error.

HKDF is implemented with the standard library, so that ``seal`` stays the only module that uses cryptography.
"""

import hashlib
import hmac

from savepoint.repository.format.seal import Seal

KEY_BYTES = 32


class MasterKey:
    """The 32 random bytes from which every key of one store derives."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = _check_length(key)

    def __repr__(self) -> str:
        return "MasterKey(hidden)"

    @property
    def check(self) -> str:
        """The value in ``savepoint.json`` that identifies this key. The key cannot be computed from it."""
        return hmac.new(self._key, b"savepoint-key-check-v1", hashlib.sha256).hexdigest()

    def agent_key(self, salt: bytes, namespace: str, agent: str) -> "AgentKey":
        """Return the key of an agent.

        The salt is read from the store, so it must not choose the key alone: namespace and agent are part of the
        derivation.
        """
        info = f"savepoint-agent-v1:{namespace}/{agent}"
        return AgentKey(derive(self._key, salt=salt, info=info.encode()))


class AgentKey:
    """The key of one agent's repository."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = _check_length(key)

    def __repr__(self) -> str:
        return "AgentKey(hidden)"

    def expose(self) -> bytes:
        """Return the key's bytes, only to send them over an authenticated channel."""
        return self._key

    def pack_seal(self, pack: str) -> Seal:
        """Return the seal for the chunks of the pack with this name."""
        return Seal(derive(self._key, salt=b"", info=b"savepoint-pack-v1:" + pack.encode()))

    def manifest_seal(self) -> Seal:
        """Return the seal for manifests."""
        return Seal(derive(self._key, salt=b"", info=b"savepoint-manifest-v1"))


def derive(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 (RFC 5869); an empty salt is the RFC's default."""
    pseudorandom = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(pseudorandom, info + b"\x01", hashlib.sha256).digest()


def _check_length(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return bytes(key)
