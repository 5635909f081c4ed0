"""What will be installed and changed is said before anything is."""

from pathlib import Path
from typing import Any

import pytest

from e2e import demo
from e2e.cluster import up
from e2e.cluster.engine import Engine
from e2e.cluster.paths import Paths

PATHS = Paths(Path("/cache"), Path("/run/nowhere"))
DOCKER = Engine("docker", ours=False, env={})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A bare one: no engine, no package, nothing built."""
    monkeypatch.setenv("SAVEPOINT_CACHE", "/nowhere/at/all")
    monkeypatch.setattr("e2e.cluster.engine.running", lambda paths: None)
    monkeypatch.setattr("e2e.cluster.engine.of_the_machine", lambda: None)
    monkeypatch.setattr("e2e.cluster.kind.answers", lambda paths: False)
    monkeypatch.setattr("e2e.cluster.bootstrap.missing", lambda names: ["docker.io", "gcc"])
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


def test_on_a_bare_machine_packages_programs_and_changes_are_listed(machine: pytest.MonkeyPatch) -> None:
    text = "\n".join(up.plan(PATHS))
    for words in ("docker.io gcc", "kubelet", "root file systems", "dockerd", "packet filter", "ip_forward"):
        assert words in text


def test_with_an_engine_nothing_is_installed_but_kind(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("e2e.cluster.engine.of_the_machine", lambda: DOCKER)
    assert up.plan(PATHS)[0].startswith("docker answers")


def test_a_cluster_that_is_up_needs_nothing(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("e2e.cluster.engine.running", lambda paths: DOCKER)
    machine.setattr("e2e.cluster.kind.answers", lambda paths: True)
    (line,) = up.plan(PATHS)
    assert "nothing is installed" in line


class Started(Exception):
    """Something has been begun."""


@pytest.mark.parametrize("external", [False, True])
def test_the_demo_lists_it_before_it_begins(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], external: bool
) -> None:
    def begun(*_: Any) -> None:
        raise Started

    machine.setenv("KUBECONFIG", "/somewhere") if external else machine.delenv("KUBECONFIG", raising=False)
    machine.setattr(demo, "Background", begun)
    machine.setattr(demo, "laptop_scene", begun)
    with pytest.raises(Started):
        demo.main()
    said = capsys.readouterr().out
    assert ("Debian packages to install" in said) is not external
    assert "savepoint-system" in said
