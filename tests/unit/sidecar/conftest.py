"""Short waits: what a bound does is tested, not how long it is."""

import pytest
from savepoint_sidecar.agent_api import process_session, quiesce
from savepoint_sidecar.lifecycle import fence, incarnation, requests, shutdown


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incarnation, "AGENT_SECONDS", 0.2)
    monkeypatch.setattr(incarnation, "RELEASE_SECONDS", 0.1)
    monkeypatch.setattr(requests, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(quiesce, "TIMEOUT_MARGIN_SECONDS", 0.05)
    monkeypatch.setattr(fence, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(process_session, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(shutdown, "AGAIN_SECONDS", 0.05)
