"""The operator's own CA and the serving certificate of its two Services, in two Secrets, renewed in time.

The CA is valid for twenty years and written once, since pods carry it in their environment. The serving certificate is
valid for ninety days and renewed after sixty. Another controller may fill the TLS Secret, such as cert-manager with the
CA's Secret as its issuer: a pair issued by this CA for both Services' names (.svc and .svc.cluster.local) is used until
two thirds of its lifetime. Any other pair is replaced, since pods trust this CA alone; to use another CA, put it into
the CA's Secret first, with an elliptic-curve key.
"""

import asyncio
import base64
import logging
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from savepoint.errors import SavepointError

from savepoint_operator.cluster.api import STRATEGIC
from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.kinds import SECRETS, WEBHOOKS, Kind

log = logging.getLogger(__name__)

CA_LIFE: Final = timedelta(days=20 * 365)
SERVING_LIFE: Final = timedelta(days=90)
BACKDATED: Final = timedelta(minutes=10)
CHECK_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 10.0

Raw = dict[str, Any]


class Secrets(Protocol):
    """The methods of ``cluster.api`` that certificates use."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None: ...
    async def create(self, kind: Kind, body: Raw) -> Raw: ...
    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Raw, *, subresource: str = "", patch_type: str = ...
    ) -> Raw: ...


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    def parsed(self) -> x509.Certificate:
        """Return the first certificate."""
        return x509.load_pem_x509_certificate(self.certificate)

    def private(self) -> ec.EllipticCurvePrivateKey:
        """Return the key. Raises ValueError unless it is an elliptic-curve key, as the operator creates."""
        key = serialization.load_pem_private_key(self.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the CA's key must be an elliptic-curve key")
        return key


def make_ca(now: datetime) -> Pair:
    """Return a new CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Savepoint CA")])
    certificate = (
        _builder(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def make_serving(ca: Pair, names: tuple[str, ...], now: datetime) -> Pair:
    """Return a new serving certificate for these DNS names."""
    issuer, issuer_key = ca.parsed(), ca.private()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    life = min(SERVING_LIFE, issuer.not_valid_after_utc - now)
    certificate = (
        _builder(subject, issuer.subject, key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pem(certificate, key)


def wants_renewal(serving: Pair, ca: Pair, names: tuple[str, ...], now: datetime) -> bool:
    """Return whether two thirds of its lifetime have passed, another CA issued it, or it lacks a name."""
    try:
        certificate, issuer = serving.parsed(), ca.parsed()
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, x509.ExtensionNotFound, Exception):  # noqa: BLE001 - any fault means it is not ours
        return True
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now > start + (end - start) * 2 / 3 or not set(names) <= set(alternative.get_values_for_type(x509.DNSName))


@dataclass(frozen=True)
class CertificateConfig:
    """The Secrets to maintain, the Services that the certificate is for, and the webhook configuration, if any."""

    namespace: str
    tls_secret: str
    ca_secret: str
    services: tuple[str, ...]
    webhook_configuration: str


class Certificates:
    """Maintains CA and serving certificate. ``context`` serves the newest pair, without closing open connections."""

    def __init__(self, api: Secrets, config: CertificateConfig, now: Callable[[], datetime]) -> None:
        self._api, self._now = api, now
        self._namespace, self._tls, self._ca = config.namespace, config.tls_secret, config.ca_secret
        self._webhook = config.webhook_configuration
        self._names = tuple(
            f"{service}.{config.namespace}.svc{suffix}"
            for service in config.services
            for suffix in ("", ".cluster.local")
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded = b""

    async def ensure(self) -> None:
        """Create or renew CA, serving certificate and the webhook's CA bundle, and load the pair into the context."""
        ca = await self._ensure_ca()
        secret = await self._api.get(SECRETS, self._namespace, self._tls)
        serving = _pair(secret)
        if serving is None or await asyncio.to_thread(wants_renewal, serving, ca, self._names, self._now()):
            serving = await asyncio.to_thread(make_serving, ca, self._names, self._now())
            await self._store_serving(secret, serving, ca)
            log.info("created a serving certificate in Secret %s/%s", self._namespace, self._tls)
        await asyncio.to_thread(self._load, serving)
        await self._publish(ca)

    async def keep_fresh(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Check and renew the certificates forever."""
        pause = CHECK_SECONDS
        while True:
            await sleep(pause)
            try:
                await self.ensure()
                pause = CHECK_SECONDS
            except SavepointError as error:
                log.warning("cannot check the certificates: %s; trying again in %d s", error, RETRY_SECONDS)
                pause = RETRY_SECONDS

    # -- internals ---------------------------------------------------------------------------------------------------

    async def _ensure_ca(self) -> Pair:
        found = _pair(await self._api.get(SECRETS, self._namespace, self._ca))
        if found is not None:
            return found
        made = await asyncio.to_thread(make_ca, self._now())
        body = {
            "metadata": {"namespace": self._namespace, "name": self._ca},
            "type": "kubernetes.io/tls",
            "data": {"tls.crt": _encoded(made.certificate), "tls.key": _encoded(made.key)},
        }
        try:
            await self._api.create(SECRETS, body)
            log.info("created a CA in Secret %s/%s", self._namespace, self._ca)
            return made
        except Conflict:
            again = _pair(await self._api.get(SECRETS, self._namespace, self._ca))
            if again is None:
                raise
            return again

    async def _store_serving(self, secret: Raw | None, serving: Pair, ca: Pair) -> None:
        data = {
            "tls.crt": _encoded(serving.certificate),
            "tls.key": _encoded(serving.key),
            "ca.crt": _encoded(ca.certificate),
        }
        if secret is None:
            metadata = {"namespace": self._namespace, "name": self._tls}
            await self._api.create(SECRETS, {"metadata": metadata, "type": "kubernetes.io/tls", "data": data})
        else:
            await self._api.patch(SECRETS, self._namespace, self._tls, {"data": data})

    def _load(self, serving: Pair) -> None:
        """Load the pair into the context. OpenSSL needs files; they exist briefly and only for this user."""
        if self._loaded == serving.certificate:
            return
        with tempfile.TemporaryDirectory() as directory:
            chain, key = Path(directory, "tls.crt"), Path(directory, "tls.key")
            chain.write_bytes(serving.certificate)
            key.touch(0o600)
            key.write_bytes(serving.key)
            self.context.load_cert_chain(chain, key)
        self._loaded = serving.certificate

    async def _publish(self, ca: Pair) -> None:
        """Write the CA into the webhook configuration, from which the API server takes it."""
        if not self._webhook:
            return
        configuration = await self._api.get(WEBHOOKS, "", self._webhook)
        if configuration is None:
            log.warning("MutatingWebhookConfiguration %s does not exist: no pod is injected; install it", self._webhook)
            return
        bundle = _encoded(ca.certificate)
        stale = [
            {"name": each["name"], "clientConfig": {"caBundle": bundle}}
            for each in configuration.get("webhooks") or ()
            if (each.get("clientConfig") or {}).get("caBundle") != bundle
        ]
        if stale:
            await self._api.patch(WEBHOOKS, "", self._webhook, {"webhooks": stale}, patch_type=STRATEGIC)
            log.info("wrote the CA into MutatingWebhookConfiguration %s", self._webhook)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _pair(secret: Raw | None) -> Pair | None:
    data = (secret or {}).get("data") or {}
    if not data.get("tls.crt") or not data.get("tls.key"):
        return None
    return Pair(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
