"""The doors to Kubernetes over real sockets: what is sent, and what answers become."""

import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from savepoint.errors import SavepointError, Unavailable
from savepoint_operator.certificates import make_ca, make_serving
from savepoint_operator.cluster.access import Access
from savepoint_operator.cluster.api import Api
from savepoint_operator.cluster.errors import Blocked, Conflict, Denied, Invalid, NamespaceTerminating, NotFound
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import CHECKPOINTS, DEPLOYMENTS, EVENTS, NODES, PODS, SECRETS
from savepoint_operator.cluster.reviewer import Reviewer
from savepoint_operator.model.views import PodIdentity

from tests.fakes.cluster import FakeCluster

NOW = datetime.now(UTC)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An HTTPS server that answers as the test says and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append((request.method, request.path_qs, dict(request.headers), body))
        status, content = self.answers.pop(0) if self.answers else (200, {})
        return web.json_response(content, status=status)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    ca = make_ca(NOW)
    serving = make_serving(ca, ("localhost",), NOW)
    (tmp_path / "ca.crt").write_bytes(ca.certificate)
    (tmp_path / "tls.crt").write_bytes(serving.certificate)
    (tmp_path / "tls.key").write_bytes(serving.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@pytest.fixture
async def api(server: Server, tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "token").write_text("of-the-account")
    environment = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(server.port)}
    access = Access.in_cluster(environment, tmp_path / "token", tmp_path / "ca.crt")
    async with access.client() as client:
        yield Api(client, request_seconds=2)


async def test_in_a_cluster_the_accounts_token_is_sent(api: Api, server: Server) -> None:
    await api.get(PODS, "demo", "coder-1")
    ((method, path, headers, _),) = server.asked
    assert (method, path) == ("GET", "/api/v1/namespaces/demo/pods/coder-1")
    assert headers["Authorization"].lower() == "bearer of-the-account"


async def test_a_rotated_token_is_read_again(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    environment = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(server.port)}
    access = Access.in_cluster(environment, token, tmp_path / "ca.crt")
    assert (await access.connection()).token == "old"
    token.write_text("new")
    hook = access.configuration.refresh_api_key_hook
    loader = hook.__closure__[0].cell_contents  # the client's own loader, which rereads after a minute
    loader.token_expires_at -= timedelta(minutes=2)
    assert (await access.connection()).token == "new"
    async with access.client() as client:
        await Api(client).list(NODES)
    assert server.asked[-1][2]["Authorization"].lower() == "bearer new"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Invalid),
        (401, Denied),
        (403, Denied),
        (409, Conflict),
        (410, Unavailable),
        (422, Invalid),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_refusals_become_our_errors(api: Api, server: Server, status: int, error: type[SavepointError]) -> None:
    server.answers = [(status, {"message": "because"})]
    with pytest.raises(error, match=f"{status}.*because"):
        await api.create(CHECKPOINTS, {"metadata": {"namespace": "demo", "name": "a"}, "spec": {}})


@pytest.mark.parametrize(
    ("details", "error"),
    [
        ({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}, NamespaceTerminating),
        ({"causes": [{"reason": "Another"}]}, Denied),
        ({"causes": None}, Denied),
        (None, Denied),
    ],
)
async def test_a_namespace_that_is_being_deleted_is_no_lack_of_rights(
    api: Api, server: Server, details: object, error: type[SavepointError]
) -> None:
    server.answers = [(403, {"message": "because", "details": details})]
    with pytest.raises(error) as caught:
        await api.create(CHECKPOINTS, {"metadata": {"namespace": "demo", "name": "a"}, "spec": {}})
    assert type(caught.value) is error


async def test_what_is_sent_is_never_repeated_in_an_error(api: Api, server: Server) -> None:
    server.answers = [(422, {"message": "invalid"})]
    with pytest.raises(Invalid) as caught:
        await api.create(SECRETS, {"metadata": {"namespace": "a", "name": "b"}, "data": {"key": "c2VjcmV0"}})
    assert "c2VjcmV0" not in str(caught.value)


async def test_only_a_404_is_none(api: Api, server: Server) -> None:
    server.answers = [(404, {"message": "no"}), (500, {}), (404, {"message": "no"})]
    assert await api.get(PODS, "demo", "a") is None
    with pytest.raises(Unavailable):
        await api.get(PODS, "demo", "a")
    with pytest.raises(NotFound):
        await api.patch(PODS, "demo", "a", {})


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path, server: Server) -> None:
    (tmp_path / "token").write_text("x")
    environment = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": "1"}
    access = Access.in_cluster(environment, tmp_path / "token", tmp_path / "ca.crt")
    async with access.client() as client:
        with pytest.raises(Unavailable):
            await Api(client, request_seconds=1).list(NODES)


async def test_lists_are_read_in_pages(api: Api, server: Server) -> None:
    server.answers = [
        (200, {"metadata": {"continue": "more"}, "items": [{"a": 1}]}),
        (200, {"metadata": {}, "items": [{"a": 2}]}),
    ]
    assert await api.list(PODS, selector="savepoint.dev/agent") == [{"a": 1}, {"a": 2}]
    assert [path for _, path, _, _ in server.asked] == [
        "/api/v1/pods?limit=500&labelSelector=savepoint.dev/agent",
        "/api/v1/pods?limit=500&labelSelector=savepoint.dev/agent&continue=more",
    ]


async def test_patches_and_deletions_say_what_they_are(api: Api, server: Server) -> None:
    await api.patch(CHECKPOINTS, "demo", "a", {"status": {}}, subresource="status")
    await api.delete(PODS, "demo", "a", "uid-1")
    server.answers = [(409, {"message": "another uid"}), (429, {"message": "budget"})]
    await api.delete(PODS, "demo", "a", "uid-1")
    with pytest.raises(Blocked):
        await api.evict("demo", "a", "uid-1")
    method, path, headers, _ = server.asked[0]
    assert (method, headers["Content-Type"]) == ("PATCH", "application/merge-patch+json")
    assert path == "/apis/savepoint.dev/v1alpha1/namespaces/demo/agentcheckpoints/a/status"
    assert server.asked[1][3]["preconditions"] == {"uid": "uid-1"}
    assert server.asked[3][1].endswith("/pods/a/eviction")
    assert server.asked[3][3]["deleteOptions"] == {"preconditions": {"uid": "uid-1"}}


# -- tokens -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "authenticated": True,
    "audiences": ["savepoint.dev"],
    "user": {
        "username": "system:serviceaccount:demo:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["coder-1"],
            "authentication.kubernetes.io/pod-uid": ["uid-1"],
        },
    },
}


class Reviews:
    def __init__(self, answer: dict[str, Any] | SavepointError) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    async def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(spec)
        if isinstance(self.answer, SavepointError):
            raise self.answer
        return self.answer


async def test_a_good_token_proves_its_pod() -> None:
    reviews = Reviews(GOOD)
    assert await Reviewer(reviews).review("t") == PodIdentity("demo", "coder-1", "uid-1")
    assert reviews.asked == [{"token": "t", "audiences": ["savepoint.dev"]}]


@pytest.mark.parametrize(
    "change",
    [
        {"authenticated": False},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"audiences": None},
        {"user": {"username": "admin", "extra": GOOD["user"]["extra"]}},
        {"user": {"username": "system:serviceaccount:demo:default", "extra": {}}},
        {"user": {**GOOD["user"], "extra": {"authentication.kubernetes.io/pod-name": ["a", "b"]}}},
    ],
)
async def test_anything_less_proves_nothing(change: dict[str, Any]) -> None:
    assert await Reviewer(Reviews({**GOOD, **change})).review("t") is None


async def test_no_right_to_review_is_no_verdict_on_the_token() -> None:
    with pytest.raises(Unavailable):
        await Reviewer(Reviews(Denied("no"))).review("t")


# -- events -------------------------------------------------------------------------------------------------------


async def test_an_event_is_where_kubectl_looks() -> None:
    cluster = FakeCluster()
    events = Events(cluster, lambda: NOW, "operator-0")
    await events.warning(EventTarget(PODS, "demo", "coder-1", "u1"), "Unprotected", "x" * 2000)
    await events.normal(EventTarget(NODES, "", "n1", "u2"), "Good", "y")
    first, second = cluster.every(EVENTS)
    assert (first["type"], first["metadata"]["namespace"], len(first["message"])) == ("Warning", "demo", 1024)
    assert first["involvedObject"]["uid"] == "u1"
    assert second["metadata"]["namespace"] == "default"


async def test_the_same_words_become_a_count_and_later_a_new_event() -> None:
    cluster, now = FakeCluster(), [NOW]
    events = Events(cluster, lambda: now[0], "operator-0")
    about = EventTarget(PODS, "demo", "coder-1", "u1")
    for _ in range(3):
        await events.warning(about, "Unprotected", "x")
    assert [each["count"] for each in cluster.every(EVENTS)] == [3]
    now[0] += timedelta(hours=1)
    await events.warning(about, "Unprotected", "x")
    assert [each["count"] for each in cluster.every(EVENTS)] == [3, 1]


async def test_an_event_that_cannot_be_written_disturbs_nobody() -> None:
    cluster = FakeCluster()
    cluster.down = True
    events = Events(cluster, lambda: NOW, "operator-0")
    await events.warning(EventTarget(PODS, "demo", "coder-1", "u1"), "Unprotected", "x")
    cluster.down = False
    await events.warning(EventTarget(PODS, "demo", "coder-1", "u1"), "Unprotected", "x")
    assert len(cluster.every(EVENTS)) == 1


def test_the_ca_signs_what_it_serves() -> None:
    ca = make_ca(NOW)
    assert b"PRIVATE" not in ca.certificate
    assert "PRIVATE" not in repr(ca)
    assert base64.b64encode(ca.certificate)


@pytest.mark.parametrize(
    "name",
    [
        "../../../../../../api/v1/namespaces/savepoint-system/secrets/savepoint-master-key",
        "..",
        ".",
        "a/../b",
        "a%2fb",
        "%2e%2e",
    ],
)
async def test_a_name_that_somebody_else_wrote_leads_nowhere_else(api: Api, server: Server, name: str) -> None:
    """Owner references hold any text, and so do records in a bucket: the operator may read more than they."""
    assert await api.get(DEPLOYMENTS, "demo", name) is None
    with pytest.raises(NotFound):
        await api.patch(PODS, "demo", name, {})
    assert server.asked == []


async def test_a_name_is_one_part_of_the_path(api: Api, server: Server) -> None:
    await api.get(PODS, "demo", "a?watch=1#b c")
    assert server.asked[0][1] == "/api/v1/namespaces/demo/pods/a%3Fwatch=1%23b%20c"
