"""The serving certificate from a mounted Secret, reloaded while the server runs.

A renewed pair is loaded into the live TLS context, so no port is closed and no admission fails. It creates no
certificate and writes no file; the operator's leader does.
"""

import asyncio
import hashlib
import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)

FILES = ("tls.crt", "tls.key", "ca.crt")


class ServingCertificate:
    """The certificate in use: ``context`` serves it; ``ca_pem`` is the CA that pods trust, empty until loaded."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._digest = b""
        self.ca_pem = ""
        self.context = _server_context()

    @property
    def loaded(self) -> bool:
        """True once a usable pair has been loaded."""
        return bool(self.ca_pem)

    def reload(self) -> bool:
        """Load the files if they changed, and return whether it did; an unusable pair leaves the earlier one in use."""
        try:
            contents = [(self._directory / name).read_bytes() for name in FILES]
        except OSError as error:
            log.info("serving certificate not found: %s does not exist yet", error.filename)
            return False
        digest = hashlib.sha256(b"\0".join(contents)).digest()
        if digest == self._digest:
            return False
        chain, key = self._directory / FILES[0], self._directory / FILES[1]
        try:
            _server_context().load_cert_chain(chain, key)  # a broken pair must not reach the live context
            self.context.load_cert_chain(chain, key)
            ca_pem = contents[2].decode("ascii")
            ssl.create_default_context(cadata=ca_pem)
        except (ssl.SSLError, ValueError) as error:
            log.error("serving certificate in %s is unusable: %s; keeping the earlier one", self._directory, error)
            return False
        self._digest, self.ca_pem = digest, ca_pem
        log.info("loaded the serving certificate from %s", self._directory)
        return True

    async def keep_fresh(self, poll_seconds: float) -> None:
        """Reload forever, by polling: a mounted Secret changes without a reliable file event."""
        while True:
            await asyncio.to_thread(self.reload)
            await asyncio.sleep(poll_seconds)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
