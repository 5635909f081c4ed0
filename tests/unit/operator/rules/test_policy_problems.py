"""Tests of the fields of a stored policy that are reported as invalid, and of quantities."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from savepoint_operator.model.objects import StatePath
from savepoint_operator.rules.policy import NO_POLICY
from savepoint_operator.rules.policy_problems import policy_problem
from savepoint_operator.rules.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e9", 10**9),
        ("1E9", 10**9),
        ("1E", 10**18),
        ("1Ti", 2**40),
        ("1Ei", 2**60),
        ("100000u", "0.1"),
        ("1500m", "1.5"),
        ("1.5Gi", 3 * 2**29),
        (".5", "0.5"),
        ("2.", 2),
        ("-1", -1),
        ("12n", "0.000000012"),
        (1073741824, 2**30),
        ("1e-3", "0.001"),
    ],
)
def test_a_quantity_is_parsed_exactly(text: int | str, number: int | str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "much", "1GiB", "1 Gi", "Gi", "1e", "0x10", "1,5", ".", "nan", "1_0", "1e9999", "\u0661"]
)
def test_another_text_is_not_a_quantity(text: str) -> None:
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"exclude": ("*.tmp", "[z-a]")}, "spec.state.exclude: '[z-a]' contains the reversed range"),
        ({"exclude": ("/abs",)}, "spec.state.exclude: '/abs' is absolute"),
        ({"state_paths": (StatePath("/proc/1"),)}, "spec.state.paths: '/proc/1' is a directory of the system"),
        ({"state_paths": (StatePath("work"),)}, "spec.state.paths: 'work' must be an absolute path"),
        ({"state_paths": (StatePath("/a/b"), StatePath("/a"))}, "spec.state.paths: '/a/b' is inside '/a'"),
        ({"resources": {"limits": {"memory": 1}}}, "spec.injection.resources.limits.memory: the injected containers"),
        ({"resources": {"limits": {"memory": "100M", "memroy": 1}}}, "spec.injection.resources.limits.memroy is not"),
        ({"resources": {"requests": {"cpu": "-1"}}}, "spec.injection.resources.requests.cpu: '-1' is not a quantity"),
        (
            {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "1G"}}},
            "spec.injection.resources.requests.memory exceeds the limit",
        ),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, Any], problem: str) -> None:
    found = policy_problem(replace(NO_POLICY, **fields))
    assert found is not None and found.reason == "PolicyInvalid"
    assert found.message.startswith(problem)
    assert not found.retry


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"exclude": ("**/node_modules", "*.tmp"), "state_paths": (StatePath("/a"), StatePath("/ab"))},
        {"resources": {"requests": {"cpu": "100000u", "memory": "1e8"}, "limits": {"memory": "1Ti"}}},
        {"resources": {"limits": {"memory": "64Mi"}}},
        {"resources": {}},
    ],
)
def test_a_valid_policy_has_no_problem(fields: dict[str, Any]) -> None:
    assert policy_problem(replace(NO_POLICY, **fields)) is None
