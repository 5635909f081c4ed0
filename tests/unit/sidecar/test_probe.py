"""The commands that kubelet runs in the sidecar's container."""

import asyncio
from pathlib import Path

import pytest
from savepoint.contract import names
from savepoint_sidecar import probe

from tests.unit.sidecar.harness import running


async def test_the_probe_commands_report_whether_the_sidecar_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(names.ENV_SOCKET, str(tmp_path / "agent.sock"))
    monkeypatch.setenv(names.ENV_STAGE, str(tmp_path / "nowhere"))
    assert probe.ready(0.0) == 1
    assert probe.prestop() == 0
    assert "cannot reach the sidecar" in capsys.readouterr().out
    async with running(tmp_path):
        assert await asyncio.to_thread(probe.ready) == 0
