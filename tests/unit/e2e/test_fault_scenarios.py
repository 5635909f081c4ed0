"""Only the selected fault scenarios are deployed and run; the cluster is a fake."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e.scenarios import fault_scenarios, fault_setup
from e2e.scenarios.fault_setup import FaultScenarios
from e2e.scenarios.faulty_agents import FaultyNamespace

MANY = ("lost", "stuck", "stopped", "small", "large", "mute")


class Cluster:
    """A fake kubectl that records the names of the objects applied to one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.applied: list[str] = []

    def apply(self, text: str) -> None:
        self.applied += [item["metadata"]["name"] for item in json.loads(text)["items"]]


def fake(namespace: str) -> Any:
    return Cluster(namespace)


def applied(namespace: FaultyNamespace) -> list[str]:
    kubectl: Any = namespace.kubectl
    names: list[str] = kubectl.applied
    return names


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> FaultScenarios:
    """Return scenarios whose steps only return their names."""
    bucket: Any = None
    restricted, baseline = (FaultyNamespace(cluster, bucket, "run") for cluster in (fake("r"), fake("b")))
    steps = {name: lambda _, name=name: f"{name} observed" for name in fault_scenarios.STEPS}
    monkeypatch.setattr(fault_scenarios, "STEPS", steps)
    return FaultScenarios(fake(""), "run", restricted, baseline)


def start(faults: FaultScenarios, *scenarios: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        fault_scenarios.start(faults, set(scenarios), threads)


def test_nothing_is_deployed_without_a_selected_scenario(faults: FaultScenarios) -> None:
    start(faults)
    assert applied(faults.restricted) == applied(faults.baseline) == []
    assert not faults.running


def test_only_the_selected_scenarios_are_deployed_and_run(faults: FaultScenarios) -> None:
    start(faults, "stuck", "foreign", "noimage", "lost")
    assert sorted(applied(faults.restricted)) == ["noimage", "noimage", "stuck", "stuck"]
    assert applied(faults.baseline) == ["foreign", "foreign"]
    assert set(faults.running) == {"stuck", "foreign", "lost", "noimage"}
    assert faults.observed("lost") == "lost observed"
    assert faults.observed("noimage") is None


def test_a_scenario_waits_for_its_turn(faults: FaultScenarios, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[str] = []

    def overlap(name: str) -> int:
        running.append(name)
        time.sleep(0.01)
        count = len(running)
        running.remove(name)
        return count

    monkeypatch.setattr(fault_scenarios, "STEPS", {name: lambda _, name=name: overlap(name) for name in MANY})
    start(faults, *MANY)
    assert [faults.observed(name) <= 2 for name in MANY] == [True] * len(MANY)


def test_an_unknown_scenario_is_an_error(faults: FaultScenarios) -> None:
    with pytest.raises(ValueError, match=r"unknown scenarios: \['stick'\]"):
        start(faults, "stick")


def test_the_volume_is_filled_only_for_its_scenario(faults: FaultScenarios, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[FaultScenarios] = []
    monkeypatch.setattr(fault_scenarios, "fill_volume", filled.append)
    start(faults, "small")
    assert filled == []
    start(faults, "filled")
    assert filled == [faults]


def test_every_store_fault_has_a_store_that_is_cleaned_up() -> None:
    assert set(fault_setup.STORE_FAULTS) - {"unknown"} <= set(fault_setup.STORE_KINDS)
