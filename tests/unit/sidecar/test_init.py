"""The init container ends within its bound, typed, whoever does not answer."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from savepoint_sidecar import init, restore_client
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.settings import Settings

BOUND_SECONDS = 0.6


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


@pytest.fixture
def closed() -> int:
    """A port behind which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("door", ["closed", "silent"])
async def test_an_operator_that_never_answers_ends_in_timeout(
    door: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "BOUND_SECONDS", BOUND_SECONDS)
    monkeypatch.setattr(restore_client, "ACK_SECONDS", 0.1)
    (tmp_path / "token").write_text("token")
    settings = Settings(
        control_url=f"ws://127.0.0.1:{request.getfixturevalue(door)}/v1/control",
        control_ca="",
        pod_name="coder-1",
        pod_namespace="demo",
        pod_uid="uid",
        node="n1",
        grace_seconds=30,
        roots=(),
        token_path=tmp_path / "token",
        stage=tmp_path / "stage",
    )
    began = time.monotonic()
    status = await init.restore(settings, Failpoints(), tmp_path / "termination")
    took = time.monotonic() - began
    told = json.loads((tmp_path / "termination").read_text())
    assert status != 0
    assert told["outcome"] == "Timeout"
    assert "the container starts again" in told["message"] and told["milliseconds"] >= BOUND_SECONDS * 1000
    assert BOUND_SECONDS <= took < BOUND_SECONDS + 5, "the bound holds, however the operator fails to answer"
    assert not (tmp_path / "stage").exists(), "nothing was restored"
