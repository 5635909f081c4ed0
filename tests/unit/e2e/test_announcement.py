"""Announcement of everything that will be installed or changed, before it is."""

from pathlib import Path
from typing import Any

import pytest

from e2e import demo
from e2e.cluster import up
from e2e.cluster.engine import Engine
from e2e.cluster.paths import Paths

PATHS = Paths(Path("/cache"), Path("/run/nowhere"))
DOCKER = Engine("docker", managed=False, env={})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate a bare machine: no engine, missing packages, nothing built."""
    monkeypatch.setenv("SAVEPOINT_CACHE", "/nowhere/at/all")
    monkeypatch.setattr("e2e.cluster.engine.find_managed", lambda paths: None)
    monkeypatch.setattr("e2e.cluster.engine.find_external", lambda: None)
    monkeypatch.setattr("e2e.cluster.kind.is_ready", lambda paths: False)
    monkeypatch.setattr("e2e.cluster.bootstrap.missing", lambda names: ["docker.io", "gcc"])
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


def test_packages_programs_and_changes_are_listed_on_a_bare_machine(machine: pytest.MonkeyPatch) -> None:
    text = "\n".join(up.plan(PATHS))
    for part in ("docker.io gcc", "kubelet", "root file systems", "dockerd", "packet filter", "ip_forward"):
        assert part in text


def test_only_kind_and_kubectl_are_installed_if_an_engine_is_running(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("e2e.cluster.engine.find_external", lambda: DOCKER)
    assert up.plan(PATHS)[0].startswith("docker is running")


def test_nothing_is_installed_if_the_cluster_is_running(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("e2e.cluster.engine.find_managed", lambda paths: DOCKER)
    machine.setattr("e2e.cluster.kind.is_ready", lambda paths: True)
    (line,) = up.plan(PATHS)
    assert "nothing is installed" in line


class Started(Exception):
    """The demo has started to change something."""


@pytest.mark.parametrize("external", [False, True])
def test_the_demo_announces_changes_before_it_starts(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], external: bool
) -> None:
    def started(*_: Any) -> None:
        raise Started

    machine.setenv("KUBECONFIG", "/somewhere") if external else machine.delenv("KUBECONFIG", raising=False)
    machine.setattr(demo, "Background", started)
    machine.setattr(demo, "laptop_scenario", started)
    with pytest.raises(Started):
        demo.main()
    output = capsys.readouterr().out
    assert ("Debian packages to install" in output) is not external
    assert "savepoint-system" in output
