"""The part of a policy that is sent to the sidecar."""

from typing import Any

from savepoint.contract.control_protocol import MovedRoot, PolicyTerms
from savepoint.repository.history.retention import RetentionRules
from savepoint_operator.cluster.parse import policy_of
from savepoint_operator.model.objects import Policy
from savepoint_operator.reconcile.pod_resolver import terms
from savepoint_operator.rules.admission.state_roots import Root, root_name


def policy(**spec: Any) -> Policy:
    return policy_of({"metadata": {"name": "few", "namespace": "demo"}, "spec": spec})


def test_moved_and_dropped_folders_are_sent_by_the_names_of_their_roots() -> None:
    state = {"moved": [{"from": "/data/work", "to": "/srv/My-Data"}], "dropped": ["/scratch"]}
    found = terms(policy(state=state))
    new = root_name("/srv/My-Data")
    assert found.moved == (MovedRoot("data-work", new),) and found.dropped == ("scratch",)
    assert Root("/srv/My-Data", "volume", persistent=True).name == new


def test_without_a_policy_the_defaults_apply() -> None:
    assert terms(None) == terms(policy()) == PolicyTerms()
    assert policy().retention == RetentionRules()


def test_retention_is_read_with_its_quantity() -> None:
    retention = {
        "keepLast": 3, "hourly": 24, "daily": 7, "weekly": 4,
        "maxAgeSeconds": 3600, "maxSize": "1.5Gi", "minKnownGood": 2, "shrinkPercent": 80,
    }  # fmt: skip
    found = policy(retention=retention)
    assert found.retention == RetentionRules(3, 24, 7, 4, 3600, 3 << 29, 2)
    assert terms(found).shrink_percent == 80
    assert policy(retention={"maxSize": 2 << 20}).retention.max_bytes == 2 << 20
