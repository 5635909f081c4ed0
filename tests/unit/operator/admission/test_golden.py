"""Whole pods before and after injection, as files, so that the diff shows how a change to injection affects pods.

Rewrite them with: python -m tests.unit.operator.admission.test_the_injected_pod_equals_the_golden_file
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from savepoint_operator.cluster.parse import policy_of
from savepoint_operator.rules.admission.injection import Injected, inject

from tests.unit.operator.admission.pods import CONFIG

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name.removesuffix(".yaml") for path in GOLDEN.glob("*.yaml") if "injected" not in path.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def inject_case(case: str) -> dict[str, Any]:
    given = load(GOLDEN / f"{case}.yaml")
    policies = [policy_of(item) for item in given["policies"]]
    result = inject(given["pod"], policies, given["enforce"], CONFIG)
    assert isinstance(result, Injected), result
    return {"pod": result.pod, "warnings": list(result.warnings), "policy": result.policy}


def test_golden_cases_exist() -> None:
    assert CASES


@pytest.mark.parametrize("case", CASES)
def test_the_injected_pod_equals_the_golden_file(case: str) -> None:
    assert inject_case(case) == load(GOLDEN / f"{case}.injected.yaml")


if __name__ == "__main__":
    for name in CASES:
        (GOLDEN / f"{name}.injected.yaml").write_text(yaml.safe_dump(inject_case(name), sort_keys=True, width=120))
