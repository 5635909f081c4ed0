"""AES-256-GCM, the format's only cipher, into reusable buffers. The only repository module that uses cryptography.

It handles keys, nonces and bytes; ``keys`` and ``pack`` decide which key and which nonce belong to what.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from savepoint.errors import IntegrityError
from savepoint.storage.store import Buffer

TAG_BYTES = 16
NONCE_BYTES = 12


class Seal:
    """A cipher with one key. Thread-safe; never shows its key."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a key has 32 bytes")
        self._cipher = AESGCM(key)

    def seal_into(self, nonce: bytes, plain: Buffer, associated: bytes, target: memoryview) -> None:
        """Write ciphertext and tag to ``target``, which is exactly 16 bytes longer than ``plain``."""
        self._cipher.encrypt_into(nonce, plain, associated, target)

    def open_into(self, nonce: bytes, sealed: Buffer, associated: bytes, target: memoryview, where: str) -> None:
        """Write the plain bytes to ``target``; raise IntegrityError naming ``where`` if anything was changed."""
        try:
            self._cipher.decrypt_into(nonce, sealed, associated, target)
        except InvalidTag as error:
            raise IntegrityError(f"{where}: the seal is broken: changed bytes, or another key", where) from error
