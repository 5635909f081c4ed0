"""URLs that a thread requests from the operator: repeated, refused, and given up."""

import asyncio

import pytest
from savepoint.contract.control_protocol import NeedUrls, Urls
from savepoint.errors import Refused, SavepointError, StoreUnavailable, Unavailable
from savepoint_sidecar.authority.url_cache import UrlCache
from savepoint_sidecar.authority.url_requests import UrlRequests

from tests.unit.sidecar.environment import ManualClock


async def test_a_url_that_the_store_refused_is_requested_again() -> None:
    sent: list[NeedUrls] = []
    connected = asyncio.Event()
    connected.set()

    async def send(request: NeedUrls) -> None:
        sent.append(request)
        requests.handle_urls(Urls(request.request, put={key: f"P{len(sent)}" for key in request.put}))

    requests = UrlRequests(UrlCache(ManualClock()), connected, send, lambda: f"r{len(sent)}")
    requests.bind()
    key = "packs/1-a"
    assert await asyncio.to_thread(requests.put_url, key) == "P1"
    assert await asyncio.to_thread(requests.put_url, key) == "P1"
    requests.forget(key)
    assert await asyncio.to_thread(requests.put_url, key) == "P2"


@pytest.mark.parametrize(
    ("reason", "error"), [("StoreUnavailable", StoreUnavailable), ("StoreDenied", Refused), ("Refused", Refused)]
)
async def test_only_a_transient_refusal_becomes_store_unavailable(reason: str, error: type[SavepointError]) -> None:
    connected = asyncio.Event()
    connected.set()

    async def send(request: NeedUrls) -> None:
        requests.handle_refusal(request.request, Refused("not now", reason))

    requests = UrlRequests(UrlCache(ManualClock()), connected, send, lambda: "r1")
    requests.bind()
    with pytest.raises(error, match="not now"):
        await asyncio.to_thread(requests.get_url, "packs/1-a")


async def test_stop_waiting_ends_a_threads_wait_for_a_url() -> None:
    async def send(request: NeedUrls) -> None:
        raise AssertionError("there is no connection")

    requests = UrlRequests(UrlCache(ManualClock()), asyncio.Event(), send, lambda: "r1")
    requests.bind()
    waiting = asyncio.ensure_future(asyncio.to_thread(requests.put_url, "packs/1-a"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with asyncio.timeout(5):
        while not waiting.done():
            requests.stop_waiting()
            await asyncio.sleep(0.005)
    with pytest.raises(Unavailable):
        await waiting
