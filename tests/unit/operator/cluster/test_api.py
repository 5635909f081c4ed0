"""The API client over real sockets: the requests it sends, and the errors it raises."""

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
from savepoint_operator.cluster.kinds import CHECKPOINTS, DEPLOYMENTS, NODES, PODS, SECRETS

NOW = datetime.now(UTC)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An HTTPS server that gives scripted answers and records its requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.requests.append((request.method, request.path_qs, dict(request.headers), body))
        status, content = self.answers.pop(0) if self.answers else (200, {})
        return web.json_response(content, status=status)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Run a server with a certificate of its own CA."""
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
    """Connect to the server as in a cluster."""
    (tmp_path / "token").write_text("of-the-account")
    environment = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(server.port)}
    access = Access.in_cluster(environment, tmp_path / "token", tmp_path / "ca.crt")
    async with access.client() as client:
        yield Api(client, request_seconds=2)


async def test_the_service_accounts_token_is_sent(api: Api, server: Server) -> None:
    await api.get(PODS, "demo", "coder-1")
    ((method, path, headers, _),) = server.requests
    assert (method, path) == ("GET", "/api/v1/namespaces/demo/pods/coder-1")
    assert headers["Authorization"].lower() == "bearer of-the-account"


async def test_a_rotated_token_is_read_again(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    environment = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(server.port)}
    access = Access.in_cluster(environment, token, tmp_path / "ca.crt")
    assert (await access.connection_parameters()).token == "old"
    token.write_text("new")
    hook: Any = access.configuration.refresh_api_key_hook
    loader = hook.__closure__[0].cell_contents  # the client's own loader, which rereads after a minute
    loader.token_expires_at -= timedelta(minutes=2)
    assert (await access.connection_parameters()).token == "new"
    async with access.client() as client:
        await Api(client).list(NODES)
    assert server.requests[-1][2]["Authorization"].lower() == "bearer new"


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
async def test_refusals_are_translated(api: Api, server: Server, status: int, error: type[SavepointError]) -> None:
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
async def test_a_terminating_namespace_is_not_a_missing_permission(
    api: Api, server: Server, details: object, error: type[SavepointError]
) -> None:
    server.answers = [(403, {"message": "because", "details": details})]
    with pytest.raises(error) as caught:
        await api.create(CHECKPOINTS, {"metadata": {"namespace": "demo", "name": "a"}, "spec": {}})
    assert type(caught.value) is error


async def test_an_error_never_repeats_the_request(api: Api, server: Server) -> None:
    server.answers = [(422, {"message": "invalid"})]
    with pytest.raises(Invalid) as caught:
        await api.create(SECRETS, {"metadata": {"namespace": "a", "name": "b"}, "data": {"key": "c2VjcmV0"}})
    assert "c2VjcmV0" not in str(caught.value)


async def test_only_a_404_means_that_the_object_does_not_exist(api: Api, server: Server) -> None:
    server.answers = [(404, {"message": "no"}), (500, {}), (404, {"message": "no"})]
    assert await api.get(PODS, "demo", "a") is None
    with pytest.raises(Unavailable):
        await api.get(PODS, "demo", "a")
    with pytest.raises(NotFound):
        await api.patch(PODS, "demo", "a", {})


async def test_an_unreachable_server_is_unavailable(tmp_path: Path, server: Server) -> None:
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
    assert [path for _, path, _, _ in server.requests] == [
        "/api/v1/pods?limit=500&labelSelector=savepoint.dev/agent",
        "/api/v1/pods?limit=500&labelSelector=savepoint.dev/agent&continue=more",
    ]


async def test_patches_deletions_and_evictions_name_their_type_and_uid(api: Api, server: Server) -> None:
    await api.patch(CHECKPOINTS, "demo", "a", {"status": {}}, subresource="status")
    await api.delete(PODS, "demo", "a", "uid-1")
    server.answers = [(409, {"message": "another uid"}), (429, {"message": "budget"})]
    await api.delete(PODS, "demo", "a", "uid-1")
    with pytest.raises(Blocked):
        await api.evict("demo", "a", "uid-1")
    method, path, headers, _ = server.requests[0]
    assert (method, headers["Content-Type"]) == ("PATCH", "application/merge-patch+json")
    assert path == "/apis/savepoint.dev/v1alpha1/namespaces/demo/agentcheckpoints/a/status"
    assert server.requests[1][3]["preconditions"] == {"uid": "uid-1"}
    assert server.requests[3][1].endswith("/pods/a/eviction")
    assert server.requests[3][3]["deleteOptions"] == {"preconditions": {"uid": "uid-1"}}


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
async def test_an_invalid_name_is_never_sent(api: Api, server: Server, name: str) -> None:
    """Owner references and records in a bucket may hold any text, and the operator may read more than their authors."""
    assert await api.get(DEPLOYMENTS, "demo", name) is None
    with pytest.raises(NotFound):
        await api.patch(PODS, "demo", name, {})
    assert server.requests == []


async def test_a_name_is_one_segment_of_the_path(api: Api, server: Server) -> None:
    await api.get(PODS, "demo", "a?watch=1#b c")
    assert server.requests[0][1] == "/api/v1/namespaces/demo/pods/a%3Fwatch=1%23b%20c"
