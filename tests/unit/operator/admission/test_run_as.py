"""Under which uid the injected containers run."""

from typing import Any

import pytest
from savepoint.contract.vocabulary import UidSource
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.run_as import RunAs, run_as

from tests.unit.operator.admission.pods import pod


def judged(
    *,
    own: dict[str, Any] | None = None,
    shared: dict[str, Any] | None = None,
    annotation: str | None = None,
    policy: int | None = None,
    level: str = "",
    observed: int | None = None,
) -> RunAs | Refusal:
    given = pod(
        annotations={} if annotation is None else {"savepoint.dev/run-as-user": annotation},
        container={"securityContext": own} if own else {},
        securityContext=shared or {},
    )
    return run_as(given, given["spec"]["containers"][0], policy, level, observed)


def test_container_pod_annotation_and_policy_count_in_this_order() -> None:
    own, shared = {"runAsUser": 1, "runAsGroup": 11}, {"runAsUser": 2, "runAsGroup": 12}
    assert judged(own=own, shared=shared, annotation="3", policy=4) == RunAs(1, 11, UidSource.POD)
    assert judged(shared=shared, annotation="3", policy=4) == RunAs(2, 12, UidSource.POD)
    assert judged(annotation="3", policy=4) == RunAs(3, None, UidSource.ANNOTATION)
    assert judged(policy=4) == RunAs(4, None, UidSource.POLICY)
    assert judged() == RunAs(0, None)


@pytest.mark.parametrize("level", ["", "restricted"])
@pytest.mark.parametrize("shared", [{}, {"runAsNonRoot": True}])
def test_the_uid_of_earlier_pods_counts_if_nothing_declares_one(level: str, shared: dict[str, Any]) -> None:
    found = judged(shared=shared, level=level, observed=1000)
    assert found == RunAs(1000, None, UidSource.OBSERVED)
    assert isinstance(found, RunAs) and found.security_context({})["runAsNonRoot"] is True
    assert judged(annotation="3", observed=1000) == RunAs(3, None, UidSource.ANNOTATION)
    assert judged(policy=4, observed=1000) == RunAs(4, None, UidSource.POLICY)


def test_root_is_never_taken_from_earlier_pods() -> None:
    assert judged(observed=0) == RunAs(0, None, UidSource.NONE)
    assert isinstance(judged(level="restricted", observed=0), Refusal)
    assert isinstance(judged(shared={"runAsNonRoot": True}, observed=0), Refusal)


def test_a_declared_zero_is_not_overridden() -> None:
    assert judged(own={"runAsUser": 0}, annotation="3", observed=5) == RunAs(0, None, UidSource.POD)


@pytest.mark.parametrize("text", ["", "node", "-1", "1.5", "2147483648", "٣", " 1"])
def test_an_annotation_that_is_not_a_uid_is_refused(text: str) -> None:
    result = judged(annotation=text)
    assert isinstance(result, Refusal)
    assert result.reason == "RunAsUserInvalid"


@pytest.mark.parametrize("where", ["own", "shared"])
def test_non_root_without_a_number_is_refused_everywhere(where: str) -> None:
    result = judged(own={"runAsNonRoot": True}) if where == "own" else judged(shared={"runAsNonRoot": True})
    assert isinstance(result, Refusal)
    assert result.reason == "RunAsUserRequired"
    assert "savepoint.dev/run-as-user" in result.message
    assert judged(shared={"runAsNonRoot": True}, annotation="7") == RunAs(7, None, UidSource.ANNOTATION)


def test_a_container_may_override_the_pods_run_as_non_root() -> None:
    assert judged(own={"runAsNonRoot": False}, shared={"runAsNonRoot": True}) == RunAs(0, None)


@pytest.mark.parametrize("own", [{}, {"runAsUser": 0}])
def test_root_is_refused_where_restricted_is_enforced(own: dict[str, Any]) -> None:
    result = judged(own=own, level="restricted")
    assert isinstance(result, Refusal)
    assert result.reason == "RunAsUserRequired"
    assert "restricted" in result.message
    assert judged(own=own, level="baseline") == RunAs(0, None, UidSource.POD if own else UidSource.NONE)


def test_the_context_satisfies_restricted_for_a_user_and_drops_everything_for_root() -> None:
    context = RunAs(1000, 2000).security_context({})
    assert context == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": 2000,
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    root = RunAs(0, None).security_context({"seLinuxOptions": {"level": "s0:c1"}, "capabilities": {"add": ["CHOWN"]}})
    assert root["capabilities"] == {"drop": ["ALL"]}
    assert root["runAsNonRoot"] is False
    assert root["seLinuxOptions"] == {"level": "s0:c1"}
    assert "runAsGroup" not in root
