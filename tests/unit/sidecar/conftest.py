"""Shortens the sidecar's waits: the tests check what a timeout does, not how long it is."""

import pytest
from savepoint_sidecar.agent_api import process_session, quiesce
from savepoint_sidecar.lifecycle import fence, incarnation, orders, requests, shutdown


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "RECONNECT_SECONDS", 0.2)
    monkeypatch.setattr(incarnation, "RELEASE_SECONDS", 0.1)
    monkeypatch.setattr(requests, "ORDER_SECONDS", 0.2)
    monkeypatch.setattr(quiesce, "TIMEOUT_MARGIN_SECONDS", 0.05)
    monkeypatch.setattr(fence, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(process_session, "STREAM_END_SECONDS", 0.1)
    monkeypatch.setattr(shutdown, "RETRY_SECONDS", 0.05)
