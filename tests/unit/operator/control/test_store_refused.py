"""A sidecar that connects while its store cannot be used is told to reconnect; only final faults stop it."""

import asyncio
import logging
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import (
    Ack,
    AttemptState,
    Checkpoint,
    Committed,
    Released,
    Result,
    Stop,
    Welcome,
)
from savepoint.errors import (
    IntegrityError,
    KeyMismatch,
    NotAdopted,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
    Superseded,
    Unavailable,
)
from savepoint_operator.control import sidecar_session
from savepoint_operator.control.server import PATH
from savepoint_sidecar.authority.control_client import ConnectionClock, ControlClient, SidecarIdentity
from savepoint_sidecar.authority.control_connection import Dialer

from tests.fakes.control_harness import AGENT, ControlHarness, Pod, attempt, until

TRANSIENT = [StoreUnavailable, StoreDenied, StoreMisconfigured, KeyMismatch, NotAdopted, Unavailable]


async def told_to_reconnect(pod: Pod) -> None:
    """Assert that the connection closes with 4503 without a message."""
    with pytest.raises(ConnectionError) as caught:
        await pod.receive()
    assert caught.value.args == (4503,)


@pytest.mark.parametrize("kind", TRANSIENT)
async def test_a_transient_fault_sends_no_stop_and_the_attempt_continues_afterwards(
    harness: ControlHarness, kind: type[SavepointError]
) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Manual", 60)
    await pod.expect(Checkpoint)
    await harness.leave(pod)
    restated = (AttemptState(attempt(1), "Committing"),)
    harness.stores.error = kind("AgentCheckpointStore default: not now")
    await told_to_reconnect(await harness.hello("a", "sidecar", epoch=1, attempts=restated))
    harness.stores.error = None
    pod, welcome = await harness.sidecar("a", epoch=1, attempts=restated)
    assert welcome.epoch == 1
    await pod.request(harness.offer(attempt(1), 1, trigger="Manual"), Committed)
    assert not harness.recorder.calls_of("failed")


async def test_a_lost_race_is_decided_by_the_chain_after_the_reconnect(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.stores.error = Superseded("another operator took the sequence")
    await told_to_reconnect(await harness.hello("a", "sidecar", epoch=1))
    harness.stores.error = None
    await harness.sidecar("a", epoch=1)


async def test_a_damaged_chain_stops_the_sidecar(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.stores.error = IntegrityError("the newest record is not what was written")
    pod = await harness.hello("a", "sidecar", epoch=1)
    assert (await pod.expect(Stop)).reason == "IntegrityError"
    assert await pod.closed() == 1000


async def test_the_end_of_the_run_waits_while_the_store_denies_access(
    harness: ControlHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar_session, "RETRY_SECONDS", 0.01)
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.stores.error = StoreDenied("the credentials were refused")
    await pod.send(Released(1, completed=True))
    await asyncio.sleep(0.1)
    assert [kind for kind, _, _ in harness.chain()] == ["grant"]
    harness.stores.error = None
    assert (await pod.expect(Ack)).of == "released"
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "completed"]


async def test_a_result_is_acknowledged_while_the_store_denies_access(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    harness.stores.error = StoreDenied("the credentials were refused")
    assert (await pod.request(Result(attempt(1), "Unchanged"), Ack)).of == "result"


async def test_a_running_sidecar_survives_a_failover_to_an_operator_that_the_store_denies(
    harness: ControlHarness, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.grant("a")
    (tmp_path / "token").write_text("token-of-a")
    client = ControlClient(
        Dialer(f"ws://127.0.0.1:{harness.port}{PATH}", "", tmp_path / "token"),
        SidecarIdentity("a", "n1", "0.1.0"),
        ConnectionClock(harness.clock.monotonic, harness.random.randbytes, lambda: 0.0),
    )
    try:
        assert (await client.welcome()).epoch == 1
        orders = client.orders()
        assert harness.server is not None
        harness.stores.error = StoreDenied("the credentials were refused")
        with caplog.at_level(logging.INFO, "savepoint_sidecar.authority.control_client"):
            harness.server._connections[("a", "sidecar")].abort()
            await until(lambda: caplog.text.count("(4503)") >= 2)
        assert not client.connected
        harness.stores.error = None
        async with asyncio.timeout(10):
            order = await anext(orders)
        assert isinstance(order, Welcome), "the first message after the reconnect is not a stop"
        assert client.connected
    finally:
        await client.close()
