"""The serving certificate from a mounted Secret, taken up while the server runs.

A renewed pair goes into the living TLS context: no port is closed, no admission fails. It makes no certificate and
writes no file; the operator's leader does.
"""

import asyncio
import hashlib
import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)

FILES = ("tls.crt", "tls.key", "ca.crt")


class ServingCertificate:
    """``context`` is for the server; ``ca_pem`` is what pods are told to trust, empty until the first load."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._digest = b""
        self.ca_pem = ""
        self.context = _server_context()

    @property
    def loaded(self) -> bool:
        return bool(self.ca_pem)

    def reload(self) -> bool:
        """Take up the files if they changed. False: nothing new, or not usable (then the earlier pair stays)."""
        try:
            contents = [(self._directory / name).read_bytes() for name in FILES]
        except OSError as error:
            log.info("serving certificate: %s is not there yet", error.filename)
            return False
        digest = hashlib.sha256(b"\0".join(contents)).digest()
        if digest == self._digest:
            return False
        chain, key = self._directory / FILES[0], self._directory / FILES[1]
        try:
            _server_context().load_cert_chain(chain, key)  # a broken pair must not reach the living context
            self.context.load_cert_chain(chain, key)
            ca_pem = contents[2].decode("ascii")
            ssl.create_default_context(cadata=ca_pem)
        except (ssl.SSLError, ValueError) as error:
            log.error("serving certificate: %s holds no usable pair: %s", self._directory, error)
            return False
        self._digest, self.ca_pem = digest, ca_pem
        log.info("serving certificate: loaded from %s", self._directory)
        return True

    async def keep_fresh(self, poll_seconds: float) -> None:
        """Look at the files for ever. A mounted Secret changes without a file event that can be relied on."""
        while True:
            await asyncio.to_thread(self.reload)
            await asyncio.sleep(poll_seconds)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
