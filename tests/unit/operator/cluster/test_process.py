"""What a process stands on: settings, the Lease, certificates, and how kopf is set up."""

import asyncio
import base64
import itertools
import json
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from savepoint.contract.environment import SettingsError
from savepoint_operator.certificates import CertificateConfig, Certificates, Pair, make_ca, make_serving, wants_renewal
from savepoint_operator.cluster.kinds import LEASES, PODS, SECRETS, WATCHED, WEBHOOKS
from savepoint_operator.handlers.watch import settings as kopf_settings
from savepoint_operator.leadership import Leadership, LeaseConfig
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.settings import Settings

from tests.fakes.cluster import FakeCluster

NOW = datetime(2026, 11, 24, tzinfo=UTC)
BASE = {"SAVEPOINT_NAMESPACE": "savepoint-system", "SAVEPOINT_POD_NAME": "operator-0"}
NAMES = ("savepoint-operator.savepoint-system.svc", "savepoint-webhook.savepoint-system.svc")

# -- settings -----------------------------------------------------------------------------------------------------


def test_the_charts_environment_is_read() -> None:
    store = {"name": "default", "spec": {"s3": {"bucket": "agents"}, "default": True}}
    settings = Settings.from_environment(
        {
            **BASE,
            "SAVEPOINT_DEFAULT_STORE": json.dumps(store),
            "SAVEPOINT_TLS_SECRET": "tls",
            "SAVEPOINT_LOG_LEVEL": "DEBUG",
        }
    )
    assert (settings.namespace, settings.identity, settings.tls_secret) == ("savepoint-system", "operator-0", "tls")
    assert settings.default_store is not None
    assert settings.default_store.spec["s3"] == {"bucket": "agents"}
    assert Settings.from_environment(BASE).default_store is None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"SAVEPOINT_NAMESPACE": ""}, "SAVEPOINT_NAMESPACE"),
        ({"SAVEPOINT_POD_NAME": ""}, "SAVEPOINT_POD_NAME"),
        ({"SAVEPOINT_DEFAULT_STORE": "{"}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_DEFAULT_STORE": "[]"}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_DEFAULT_STORE": '{"name":"","spec":{"s3":{}}}'}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_DEFAULT_STORE": '{"name":"a","spec":{}}'}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_CONTROL_PORT": "eight"}, "SAVEPOINT_CONTROL_PORT"),
        ({"SAVEPOINT_HEALTH_PORT": "99999"}, "SAVEPOINT_HEALTH_PORT"),
        ({"SAVEPOINT_LOG_LEVEL": "LOUD"}, "SAVEPOINT_LOG_LEVEL"),
        ({"SAVEPOINT_NOT_RUNNING_SECONDS": "soon"}, "SAVEPOINT_NOT_RUNNING_SECONDS"),
        ({"SAVEPOINT_NOT_RUNNING_SECONDS": "0"}, "SAVEPOINT_NOT_RUNNING_SECONDS"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({**BASE, **change})


# -- the Lease ----------------------------------------------------------------------------------------------------


class Candidate:
    """One that wants to lead, with a clock of its own."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.seconds = 1000.0
        self.leadership = Leadership(
            cluster,
            LeaseConfig("savepoint-system", "lease", name, lease_seconds=15, retry_seconds=0),
            Clocks(lambda: NOW + timedelta(days=365), lambda: self.seconds),  # a wrong wall clock must not matter
        )

    async def tries(self) -> bool:
        """One attempt."""
        return await self.leadership._try()


def holder(cluster: FakeCluster) -> str:
    return str(cluster.object(LEASES, "lease", "savepoint-system")["spec"]["holderIdentity"])


async def test_the_first_leads_and_the_second_waits_until_it_is_silent() -> None:
    cluster = FakeCluster()
    first, second = Candidate(cluster, "a"), Candidate(cluster, "b")
    assert await first.tries()
    assert first.leadership.held
    assert not await second.tries()
    second.seconds += 14
    assert await first.tries()  # it renews: the version changes
    assert not await second.tries()
    second.seconds += 14
    assert not await second.tries()
    second.seconds += 2
    assert await second.tries()
    assert holder(cluster) == "b"
    assert cluster.object(LEASES, "lease", "savepoint-system")["spec"]["leaseTransitions"] == 1
    assert not await first.tries()
    assert not first.leadership.held


async def test_of_two_at_the_same_moment_one_wins() -> None:
    cluster = FakeCluster()
    candidates = [Candidate(cluster, name) for name in "abc"]
    won = await asyncio.gather(*(each.tries() for each in candidates))
    assert sum(won) == 1


async def test_a_release_lets_the_next_in_at_once() -> None:
    cluster = FakeCluster()
    first, second = Candidate(cluster, "a"), Candidate(cluster, "b")
    await first.leadership.acquire()
    await first.leadership.release()
    assert not first.leadership.held
    assert await second.tries()
    await first.leadership.release()
    assert holder(cluster) == "b"


async def test_a_process_that_stood_still_does_not_believe_that_it_leads() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.leadership.acquire()
    first.seconds += 60
    assert not first.leadership.held
    before = len(cluster.calls)
    await asyncio.wait_for(first.leadership.keep(), 5)
    assert len(cluster.calls) == before  # it does not even try: another may lead by now


async def test_leadership_ends_when_it_cannot_be_renewed() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.leadership.acquire()
    cluster.down = True
    keeping = asyncio.create_task(first.leadership.keep())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not keeping.done()
    first.seconds += 11
    await asyncio.wait_for(keeping, 5)


# -- certificates -------------------------------------------------------------------------------------------------


def certificates(cluster: FakeCluster, now: datetime = NOW) -> Certificates:
    services = ("savepoint-operator", "savepoint-webhook")
    return Certificates(cluster, CertificateConfig("savepoint-system", "tls", "ca", services, "savepoint"), lambda: now)


def secret(cluster: FakeCluster, name: str) -> dict[str, bytes]:
    data = cluster.object(SECRETS, name, "savepoint-system")["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


async def test_ca_and_serving_pair_are_made_and_published_once() -> None:
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


async def test_what_another_issuer_made_with_the_same_ca_is_used_as_it_is() -> None:
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


async def test_a_renewed_pair_goes_into_the_living_context() -> None:
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


# -- kopf ---------------------------------------------------------------------------------------------------------


def test_kopf_writes_nothing_and_asks_for_labelled_pods_only() -> None:
    settings = kopf_settings()
    assert not settings.posting.enabled
    assert settings.persistence.finalizer == "savepoint.dev/operator"
    assert isinstance(settings.watching.server_timeout, int)
    assert len({kind.plural for kind in WATCHED}) == len(WATCHED)
    assert PODS in WATCHED
    assert list(itertools.islice(settings.watching.label_selectors.values(), 1)) == ["savepoint.dev/agent"]
