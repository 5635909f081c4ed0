"""The lifecycle rules that make a store's objects unreadable."""

from types import SimpleNamespace

import pytest
from minio.commonconfig import AndOperator, Filter, Tag, Tags
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule, Transition
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import S3Config
from savepoint.storage.store import ExpiringStore

DAYS = Expiration(days=30)


def tagged() -> Tags:
    tags = Tags.new_object_tags()
    tags["team"] = "other"
    return tags


def rules_of(config: LifecycleConfig | None, prefix: str = "team-a/") -> list[str]:
    store = S3Store(S3Config("https://s3.test", "agents", "key", "secret", prefix=prefix))
    store._client = SimpleNamespace(get_bucket_lifecycle=lambda bucket: config)  # type: ignore[assignment]
    assert isinstance(store, ExpiringStore)
    return list(store.expiring_rules())


def test_no_configuration_has_no_rules() -> None:
    assert rules_of(None) == []


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("Enabled", rule_filter=Filter(prefix=""), rule_id="a", expiration=DAYS), "rule a deletes"),
        (Rule("Enabled", rule_filter=Filter(prefix="team-a/"), rule_id="a", expiration=DAYS), "after 30 days"),
        (Rule("Enabled", rule_filter=Filter(prefix="team-a/x/packs/"), expiration=DAYS), "rule without ID"),
        (Rule("Enabled", rule_filter=Filter(prefix="te"), expiration=DAYS), "deletes objects"),
        (Rule("Enabled", rule_filter=Filter(AndOperator("team-a/", tagged())), expiration=DAYS), ""),
        (Rule("Enabled", expiration=DAYS), "deletes objects"),
        (
            Rule("Enabled", rule_filter=Filter(prefix=""), transition=Transition(days=9, storage_class="GLACIER")),
            "GLACIER",
        ),
        (
            Rule("Enabled", rule_filter=Filter(prefix=""), transition=Transition(days=9, storage_class="STANDARD_IA")),
            "",
        ),
        (Rule("Disabled", rule_filter=Filter(prefix=""), expiration=DAYS), ""),
        (Rule("Enabled", rule_filter=Filter(prefix="team-b/"), expiration=DAYS), ""),
        (Rule("Enabled", rule_filter=Filter(tag=Tag("team", "other")), expiration=DAYS), ""),
        (
            Rule(
                "Enabled",
                rule_filter=Filter(prefix=""),
                noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=1),
            ),
            "",
        ),
        (Rule("Enabled", rule_filter=Filter(prefix=""), expiration=Expiration(expired_object_delete_marker=True)), ""),
    ],
)
def test_only_rules_that_reach_current_objects_are_named(rule: Rule, expected: str) -> None:
    found = rules_of(LifecycleConfig([rule]))
    assert [expected in each for each in found] == ([True] if expected else [])
