"""Listing and watching, against a scripted API server."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
import pytest
from savepoint_operator.cluster import watch
from savepoint_operator.cluster.watch import Watch


class Answer:
    """One answer of the API server: a body, or the events of a watch."""

    def __init__(self, status: int = 200, body: Any = None, events: Iterable[Any] = ()) -> None:
        self.status = status
        self._body = json.dumps(body).encode()
        self._lines = [json.dumps(event).encode() + b"\n" for event in events]
        self.content = self
        self.closed = False

    async def read(self) -> bytes:
        return self._body

    async def readline(self) -> bytes:
        return self._lines.pop(0) if self._lines else b""

    def close(self) -> None:
        self.closed = True


class Script:
    """Gives the answers in order, then hangs as a watch without events does."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.done = asyncio.Event()

    async def __call__(self, **arguments: Any) -> Answer:
        self.requests.append(arguments)
        if not self._answers:
            self.done.set()
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Names:
    """A sink that keeps the objects' names."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self.names = {item["metadata"]["name"] for item in objects}

    def put(self, item: Mapping[str, Any]) -> None:
        self.names.add(item["metadata"]["name"])

    def remove(self, item: Mapping[str, Any]) -> None:
        self.names.discard(item["metadata"]["name"])


def thing(name: str, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


def listed(version: str, *names: str) -> Answer:
    return Answer(body={"metadata": {"resourceVersion": version}, "items": [thing(name) for name in names]})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_SECONDS", "RETRY_MIN_SECONDS"):
        monkeypatch.setattr(watch, name, 0.0)


async def follow(*answers: Answer | Exception) -> tuple[Script, Names, Watch]:
    """Run a watch until the script has no more answers."""
    script, sink = Script(*answers), Names()
    subject = Watch("things", script, sink, lambda: 0.0)
    assert not subject.synced
    task = asyncio.create_task(subject.run())
    await script.done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return script, sink, subject


async def test_a_watch_starts_at_the_version_of_the_list() -> None:
    events = [
        {"type": "ADDED", "object": thing("c", "8")},
        {"type": "DELETED", "object": thing("a", "9")},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}},
    ]
    first = Answer(events=events)
    script, sink, subject = await follow(listed("7", "a", "b"), first)
    assert subject.synced
    assert sink.names == {"b", "c"}
    assert first.closed
    assert [request.get("resource_version") for request in script.requests] == [None, "7", "12"]
    assert all(request["_request_timeout"] > 0 for request in script.requests)


async def test_a_watch_is_synced_after_the_first_list_and_stays_so_through_faults() -> None:
    script, sink, subject = await follow(
        Answer(403, {"message": "no"}),
        aiohttp.ClientConnectionError("refused"),
        TimeoutError(),
        listed("7", "a"),
        aiohttp.ClientPayloadError("cut"),
        listed("8", "b"),
    )
    assert subject.synced
    assert sink.names == {"b"}
    assert [request.get("resource_version") for request in script.requests] == [None, None, None, None, "7", None, "8"]


@pytest.mark.parametrize(
    "expired",
    [Answer(410, {}), Answer(events=[{"type": "ERROR", "object": {"code": 410, "message": "too old"}}])],
    ids=["at once", "in the stream"],
)
async def test_an_expired_watch_lists_again(expired: Answer) -> None:
    script, sink, _ = await follow(listed("7", "a"), expired, listed("9", "b"))
    assert sink.names == {"b"}
    assert [request.get("resource_version") for request in script.requests] == [None, "7", None, "9"]


async def test_another_error_in_the_stream_lists_again_too() -> None:
    error = {"type": "ERROR", "object": {"code": 500, "message": "etcd"}}
    _, sink, _ = await follow(listed("7", "a"), Answer(events=[error]), listed("9", "b"))
    assert sink.names == {"b"}
