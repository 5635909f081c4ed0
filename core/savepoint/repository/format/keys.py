"""The keys of a store and how they derive from each other. None of them shows its bytes in a repr, a log or an error.

HKDF is written with the standard library, so that the one door to cryptography stays ``seal``.
"""

import hashlib
import hmac

from savepoint.repository.format.seal import Seal

KEY_BYTES = 32


class MasterKey:
    """The 32 random bytes from which every key of one store derives."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = _whole(key)

    def __repr__(self) -> str:
        return "MasterKey(hidden)"

    @property
    def check(self) -> str:
        """What ``savepoint.json`` keeps to recognise this key, and from which it cannot be found."""
        return hmac.new(self._key, b"savepoint-key-check-v1", hashlib.sha256).hexdigest()

    def agent_key(self, salt: bytes, namespace: str, agent: str) -> "AgentKey":
        """The key of this agent with this salt. The salt is read from the store: alone it must not choose the key."""
        info = f"savepoint-agent-v1:{namespace}/{agent}"
        return AgentKey(derive(self._key, salt=salt, info=info.encode()))


class AgentKey:
    """The key of one agent's repository."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = _whole(key)

    def __repr__(self) -> str:
        return "AgentKey(hidden)"

    def expose(self) -> bytes:
        """The bytes, to hand them over an authenticated channel; for nothing else."""
        return self._key

    def pack_seal(self, pack: str) -> Seal:
        """What seals the chunks of the pack with this name."""
        return Seal(derive(self._key, salt=b"", info=b"savepoint-pack-v1:" + pack.encode()))

    def manifest_seal(self) -> Seal:
        """What seals manifests."""
        return Seal(derive(self._key, salt=b"", info=b"savepoint-manifest-v1"))


def derive(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 of RFC 5869, 32 bytes; an empty salt is the RFC's default."""
    pseudorandom = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(pseudorandom, info + b"\x01", hashlib.sha256).digest()


def _whole(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return bytes(key)
