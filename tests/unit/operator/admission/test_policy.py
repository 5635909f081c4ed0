"""Parsing a policy, and which policy applies to a pod."""

from datetime import timedelta
from typing import Any

import pytest
from savepoint_operator.cluster.parse import policy_of
from savepoint_operator.model.objects import StatePath
from savepoint_operator.model.selector import LabelSelector
from savepoint_operator.rules.policy import choose_policy

from tests.fakes.policy import CREATED, policy


def selector(**expression: Any) -> LabelSelector:
    return LabelSelector.parse({"matchExpressions": [expression]})


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ({"operator": "In", "values": ["x", "y"]}, ["x"]),
        ({"operator": "NotIn", "values": ["x"]}, ["z", None]),
        ({"operator": "Exists"}, ["x", "z"]),
        ({"operator": "DoesNotExist"}, [None]),
        ({"operator": "Like", "values": ["x"]}, []),
    ],
)
def test_every_selector_operator_selects_as_in_kubernetes(
    expression: dict[str, Any], selected: list[str | None]
) -> None:
    chosen = selector(key="k", **expression)
    for value in ("x", "z", None):
        assert chosen.selects({} if value is None else {"k": value}) == (value in selected), value


def test_the_empty_selector_selects_everything_and_all_requirements_must_hold() -> None:
    assert LabelSelector.parse({}).selects({"a": "b"})
    both = LabelSelector.parse({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]})
    assert both.selects({"a": "1", "b": ""})
    assert not both.selects({"a": "1"})
    assert not both.selects({"a": "2", "b": ""})


def test_the_oldest_policy_applies_then_the_first_by_name() -> None:
    team = LabelSelector.parse({"matchLabels": {"team": "x"}})
    old, twin = policy("z", selector=team), policy("a", selector=team)
    young = policy("b", created=CREATED + timedelta(days=31))
    assert choose_policy([young, old, twin], {"team": "x"}) is twin
    assert choose_policy([young, old], {"team": "y"}) is young
    assert choose_policy([old], {"team": "y"}) is None


def test_a_policy_is_parsed_with_everything_and_with_nothing_set() -> None:
    raw = {
        "metadata": {"name": "p", "namespace": "agents", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "containerName": "agent",
            "state": {
                "volumes": ["v"],
                "paths": [{"mountPath": "/w", "sizeLimit": "1Gi"}, {"mountPath": "/x"}],
                "changeDetection": "Stat",
            },
            "stage": {"sizeLimit": 5, "medium": "Memory"},
            "restore": {"onContainerRestart": "Restore", "onUnknownFiles": "MoveAside"},
            "injection": {"resources": {"limits": {"memory": "1Gi"}}, "runAsUser": 7},
        },
    }
    assert policy_of(raw) == policy(
        "p",
        container_name="agent",
        state_volumes=("v",),
        state_paths=(StatePath("/w", "1Gi"), StatePath("/x")),
        stage_size_limit=5,
        change_detection="Stat",
        on_container_restart="Restore",
        on_unknown_files="MoveAside",
        stage_medium="Memory",
        resources={"limits": {"memory": "1Gi"}},
        run_as_user=7,
    )
    bare = {"name": "p", "namespace": "agents", "creationTimestamp": "2026-01-01T00:00:00Z"}
    assert policy_of({"metadata": bare, "spec": {}}) == policy("p")
    assert policy_of({"metadata": bare, "spec": {"stage": {"medium": "Disk"}}}).stage_medium == ""
