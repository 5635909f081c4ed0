"""The options of `python -m e2e.cluster up` reach the creation of the cluster."""

from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import __main__ as command
from e2e.cluster import kind
from e2e.cluster.engine import Engine

DOCKER = Engine("docker", managed=False, env={})


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Return the calls of ``kind.create``, on a machine without a managed engine."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setenv("SAVEPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAVEPOINT_RUN", str(tmp_path / "run"))
    monkeypatch.setattr("e2e.cluster.cleanup.kill_orphans", lambda paths: None)
    monkeypatch.setattr("e2e.cluster.engine.find_managed", lambda paths: None)
    monkeypatch.setattr("e2e.cluster.programs.build", lambda names: None)
    monkeypatch.setattr(kind, "exists", lambda engine: False)
    monkeypatch.setattr(kind, "create", lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize("image", [None, "kindest/node:v1.33.1"])
def test_the_requested_node_image_is_used(
    created: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, image: str | None
) -> None:
    monkeypatch.setattr("e2e.cluster.engine.find_external", lambda: DOCKER)
    assert command.main(["up", *(["--node-image", image] if image else [])]) == 0
    ((engine, _, used, detection),) = created
    assert (engine, used, detection) == (DOCKER, image, kind.FAST)


def test_a_node_image_is_rejected_without_an_engine(
    created: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("e2e.cluster.engine.find_external", lambda: None)
    assert command.main(["up", "--node-image", "kindest/node:v1.33.1"]) == 1
    assert "--node-image needs a container engine" in capsys.readouterr().err
    assert not created
