"""The CA and the serving pair: created once, renewed in time, published to the webhook configuration."""

import asyncio
import base64
import ssl
from datetime import UTC, datetime, timedelta

from savepoint_operator.certificates import CertificateConfig, Certificates, Pair, make_ca, make_serving, wants_renewal
from savepoint_operator.cluster.kinds import SECRETS, WEBHOOKS

from tests.fakes.cluster import FakeCluster

NOW = datetime(2026, 11, 24, tzinfo=UTC)
NAMES = ("savepoint-operator.savepoint-system.svc", "savepoint-webhook.savepoint-system.svc")


def certificates(cluster: FakeCluster, now: datetime = NOW) -> Certificates:
    services = ("savepoint-operator", "savepoint-webhook")
    return Certificates(cluster, CertificateConfig("savepoint-system", "tls", "ca", services, "savepoint"), lambda: now)


def secret(cluster: FakeCluster, name: str) -> dict[str, bytes]:
    data = cluster.object(SECRETS, name, "savepoint-system")["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


async def test_ca_and_serving_pair_are_created_and_published_once() -> None:
    cluster = FakeCluster()
    hooks = [{"name": "pods.savepoint.dev", "clientConfig": {"service": {"name": "savepoint-webhook"}}}]
    cluster.put(WEBHOOKS, "savepoint", webhooks=hooks)
    await certificates(cluster).ensure()
    first, ca = secret(cluster, "tls"), secret(cluster, "ca")
    assert set(first) == {"tls.crt", "tls.key", "ca.crt"}
    assert first["ca.crt"] == ca["tls.crt"]
    assert not wants_renewal(Pair(first["tls.crt"], first["tls.key"]), Pair(ca["tls.crt"], ca["tls.key"]), NAMES, NOW)
    (hook,) = cluster.object(WEBHOOKS, "savepoint")["webhooks"]
    assert base64.b64decode(hook["clientConfig"]["caBundle"]) == ca["tls.crt"]
    assert hook["clientConfig"]["service"] == {"name": "savepoint-webhook"}
    before = len([call for call in cluster.calls if call[0] in ("create", "patch")])
    await certificates(cluster).ensure()
    assert secret(cluster, "tls") == first
    assert len([call for call in cluster.calls if call[0] in ("create", "patch")]) == before


async def test_the_serving_pair_is_renewed_after_two_thirds_and_the_ca_stays() -> None:
    cluster = FakeCluster()
    await certificates(cluster).ensure()
    first, ca = secret(cluster, "tls"), secret(cluster, "ca")
    await certificates(cluster, NOW + timedelta(days=59)).ensure()
    assert secret(cluster, "tls") == first
    await certificates(cluster, NOW + timedelta(days=61)).ensure()
    assert secret(cluster, "tls")["tls.crt"] != first["tls.crt"]
    assert secret(cluster, "ca") == ca


async def test_a_pair_that_another_issuer_signed_with_the_same_ca_is_kept() -> None:
    cluster, ca = FakeCluster(), make_ca(NOW)
    names = (*NAMES, *(f"{name}.cluster.local" for name in NAMES), "savepoint.example.com")
    theirs = make_serving(ca, names, NOW)
    for name, pair in (("ca", ca), ("tls", theirs)):
        data = {"tls.crt": pair.certificate, "tls.key": pair.key}
        cluster.put(
            SECRETS, name, "savepoint-system", data={key: base64.b64encode(each).decode() for key, each in data.items()}
        )
    await certificates(cluster).ensure()
    assert secret(cluster, "ca")["tls.crt"] == ca.certificate
    assert secret(cluster, "tls")["tls.crt"] == theirs.certificate
    await certificates(cluster, NOW + timedelta(days=61)).ensure()  # its issuer has had its chance
    assert secret(cluster, "tls")["tls.crt"] != theirs.certificate


async def test_a_broken_or_foreign_pair_is_replaced() -> None:
    cluster = FakeCluster()
    foreign = make_serving(make_ca(NOW), NAMES, NOW)
    for content in (b"nonsense", foreign.certificate):
        data = {"tls.crt": base64.b64encode(content).decode(), "tls.key": base64.b64encode(foreign.key).decode()}
        cluster.put(SECRETS, "tls", "savepoint-system", data=data)
        await certificates(cluster).ensure()
        ca = secret(cluster, "ca")
        pair = secret(cluster, "tls")
        assert not wants_renewal(Pair(pair["tls.crt"], pair["tls.key"]), Pair(ca["tls.crt"], ca["tls.key"]), NAMES, NOW)


async def test_a_renewed_pair_is_loaded_into_the_open_context() -> None:
    cluster, now = FakeCluster(), [NOW]
    made = Certificates(
        cluster, CertificateConfig("savepoint-system", "tls", "ca", ("savepoint-operator",), ""), lambda: now[0]
    )
    await made.ensure()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=made.context)
    port = server.sockets[0].getsockname()[1]
    blind = ssl.create_default_context()  # only the certificate is looked at, not the time at which it is valid
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE

    async def served() -> bytes:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=blind)
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return found

    before = await served()
    now[0] += timedelta(days=70)
    await made.ensure()
    assert await served() != before
    assert ssl.DER_cert_to_PEM_cert(await served()).encode() == secret(cluster, "tls")["tls.crt"]
    server.close()
    await server.wait_closed()


def test_a_ca_does_not_show_its_private_key() -> None:
    ca = make_ca(NOW)
    assert b"PRIVATE" not in ca.certificate
    assert "PRIVATE" not in repr(ca)
    assert base64.b64encode(ca.certificate)
