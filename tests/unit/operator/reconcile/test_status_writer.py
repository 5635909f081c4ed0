"""The status writer: it merges conditions, sends only differences, updates the cache, and reports deleted objects."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from savepoint.contract.names import ANNOTATION_CHECKPOINT_NOW, LABEL_AGENT
from savepoint.errors import SavepointError, Unavailable
from savepoint_operator.cluster.errors import Conflict, NotFound
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS, STORES, Kind
from savepoint_operator.model.objects import AgentObject, ObjectKey
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.status_writer import StatusWriter
from savepoint_operator.rules.status.conditions import Condition

from tests.fakes.cluster import FakeCluster

NAMESPACE = "demo"
PROTECTED = Condition.of("Protected", True, "Protected", "A restart now would restore coder-1.")
AT_RISK = Condition.of("Protected", False, "AtRisk", "Node n1 is lost.")


class Fixture:
    """A writer over a fake API server, with one ProtectedAgent that is cached."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 24, 12, tzinfo=UTC)
        self.cluster, self.cache = FakeCluster(lambda: self.time), ClusterCache()
        self.deleted: list[tuple[str, dict[str, Any]]] = []
        self.writer = StatusWriter(self.cluster, self.cache, lambda: self.time, self.observe_deletion)
        self.cache.agents.put(self.cluster.put(AGENTS, "coder", NAMESPACE, metadata={"generation": 3}))

    def observe_deletion(self, kind: Kind, raw: dict[str, Any]) -> None:
        self.deleted.append((kind.kind, raw["metadata"]))

    @property
    def item(self) -> AgentObject:
        """The object as it is cached."""
        item = self.cache.agents.get(ObjectKey(NAMESPACE, "coder"))
        assert item is not None
        return item

    @property
    def stored(self) -> dict[str, Any]:
        """The status at the API server."""
        status: dict[str, Any] = self.cluster.object(AGENTS, "coder", NAMESPACE).get("status", {})
        return status

    @property
    def patches(self) -> int:
        """Number of patches that were sent."""
        return sum(verb == "patch" for verb, _, _ in self.cluster.calls)


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


async def test_the_patch_and_the_conditions_are_written_together(fixture: Fixture) -> None:
    written = await fixture.writer.write(AGENTS, fixture.item, {"reason": "Protected", "epoch": 1}, PROTECTED)
    assert fixture.patches == 1
    assert fixture.stored == {
        "reason": "Protected",
        "epoch": 1,
        "observedGeneration": 3,
        "conditions": [
            {
                "type": "Protected",
                "status": "True",
                "observedGeneration": 3,
                "lastTransitionTime": "2026-11-24T12:00:00Z",
                "reason": "Protected",
                "message": "A restart now would restore coder-1.",
            }
        ],
    }
    assert written is fixture.item
    assert written.status == fixture.stored


async def test_a_patch_without_conditions_leaves_them_alone(fixture: Fixture) -> None:
    await fixture.writer.write(AGENTS, fixture.item, {}, PROTECTED)
    before = fixture.stored
    await fixture.writer.write(AGENTS, fixture.item, {"epoch": 2})
    assert fixture.stored == {**before, "epoch": 2}


async def test_an_equal_status_is_not_sent(fixture: Fixture) -> None:
    await fixture.writer.write(AGENTS, fixture.item, {"epoch": 1}, PROTECTED)
    fixture.time += timedelta(minutes=1)
    item = fixture.item
    assert await fixture.writer.write(AGENTS, item, {"epoch": 1}, PROTECTED) is item
    assert fixture.patches == 1


async def test_only_differences_are_sent(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    await fixture.writer.write(AGENTS, fixture.item, {"epoch": 1, "summary": {"size": "1Ki"}, "policyName": "a"})
    sent: list[tuple[Any, str]] = []
    patch = fixture.cluster.patch

    async def record(kind: Kind, namespace: str, name: str, body: dict[str, Any], *, subresource: str) -> Any:
        sent.append((body, subresource))
        return await patch(kind, namespace, name, body, subresource=subresource)

    monkeypatch.setattr(fixture.cluster, "patch", record)
    await fixture.writer.write(AGENTS, fixture.item, {"epoch": 1, "summary": {"size": "2Ki"}, "policyName": None})
    assert sent == [({"status": {"summary": {"size": "2Ki"}, "policyName": None}}, "status")]
    assert fixture.stored == {"epoch": 1, "summary": {"size": "2Ki"}}


async def test_the_transition_time_moves_only_with_the_status_of_the_condition(fixture: Fixture) -> None:
    times = []
    for condition in (PROTECTED, Condition.of("Protected", True, "Completed"), AT_RISK):
        await fixture.writer.write(AGENTS, fixture.item, {}, condition)
        times.append(fixture.stored["conditions"][0]["lastTransitionTime"])
        fixture.time += timedelta(minutes=1)
    assert times == ["2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z", "2026-11-24T12:02:00Z"]


async def test_conditions_of_other_types_are_kept(fixture: Fixture) -> None:
    await fixture.writer.write(AGENTS, fixture.item, {}, Condition.of("Audited", True, "ByHand"))
    await fixture.writer.write(AGENTS, fixture.item, {}, PROTECTED)
    assert [each["type"] for each in fixture.stored["conditions"]] == ["Audited", "Protected"]


async def test_a_cluster_scoped_object_is_written_too(fixture: Fixture) -> None:
    s3 = {"endpoint": "https://s3.test", "bucket": "agents"}
    fixture.cache.stores.put(fixture.cluster.put(STORES, "default", spec={"s3": s3}))
    store = fixture.cache.stores.get(ObjectKey("", "default"))
    assert store is not None
    await fixture.writer.write(STORES, store, {"repositories": 2})
    assert fixture.cluster.object(STORES, "default")["status"] == {"repositories": 2}


async def test_a_deleted_object_is_reported_as_its_watch_would_report_it(fixture: Fixture) -> None:
    item = fixture.item
    fixture.cluster.remove(AGENTS, "coder", NAMESPACE)
    assert await fixture.writer.write(AGENTS, item, {"epoch": 1}, PROTECTED) is None
    assert fixture.deleted == [("ProtectedAgent", {"namespace": NAMESPACE, "name": "coder", "uid": item.meta.uid})]


async def test_an_object_that_the_watch_reported_deleted_during_the_write_does_not_return(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = fixture.cluster.patch

    async def delete_meanwhile(*arguments: Any, **options: Any) -> Any:
        raw = await patch(*arguments, **options)
        fixture.cache.agents.remove(raw)
        return raw

    monkeypatch.setattr(fixture.cluster, "patch", delete_meanwhile)
    assert await fixture.writer.write(AGENTS, fixture.item, {"epoch": 1}) is None
    assert fixture.cache.agents.get(ObjectKey(NAMESPACE, "coder")) is None


@pytest.mark.parametrize("error", [Unavailable("the API server is down"), Conflict("changed")])
async def test_other_faults_are_raised_and_leave_the_cache_alone(fixture: Fixture, error: SavepointError) -> None:
    item = fixture.item
    fixture.cluster.fail["patch", "ProtectedAgent"] = error
    with pytest.raises(type(error)):
        await fixture.writer.write(AGENTS, item, {"epoch": 1}, PROTECTED)
    assert fixture.item is item
    assert fixture.deleted == []


# -- metadata -----------------------------------------------------------------------------------------------------


async def test_labels_and_annotations_are_added_to_existing_ones(fixture: Fixture) -> None:
    metadata = {"labels": {"team": "coding"}, "annotations": {"note": "mine"}}
    fixture.cache.agents.put(fixture.cluster.put(AGENTS, "coder", NAMESPACE, metadata=metadata))
    labels, annotations = {LABEL_AGENT: "coder"}, {ANNOTATION_CHECKPOINT_NOW: "1"}
    written = await fixture.writer.write_metadata(AGENTS, fixture.item, labels=labels, annotations=annotations)
    stored = fixture.cluster.object(AGENTS, "coder", NAMESPACE)["metadata"]
    assert stored["labels"] == {"team": "coding", LABEL_AGENT: "coder"}
    assert stored["annotations"] == {"note": "mine", ANNOTATION_CHECKPOINT_NOW: "1"}
    assert written is fixture.item
    assert written.meta.labels == stored["labels"]


async def test_equal_labels_are_not_sent(fixture: Fixture) -> None:
    labels = {LABEL_AGENT: "coder"}
    await fixture.writer.write_metadata(AGENTS, fixture.item, labels=labels)
    item = fixture.item
    assert await fixture.writer.write_metadata(AGENTS, item, labels=labels) is item
    assert fixture.patches == 1


async def test_a_labelled_object_that_was_deleted_is_reported_as_its_watch_would_report_it(fixture: Fixture) -> None:
    raw = fixture.cluster.put(CHECKPOINTS, "coder-1", NAMESPACE, spec={"agent": "coder"})
    fixture.cache.checkpoints.put(raw)
    item = fixture.cache.checkpoints.get(ObjectKey(NAMESPACE, "coder-1"))
    assert item is not None
    fixture.cluster.fail["patch", "AgentCheckpoint"] = NotFound("it does not exist")
    assert await fixture.writer.write_metadata(CHECKPOINTS, item, labels={LABEL_AGENT: "coder"}) is None
    assert [kind for kind, _ in fixture.deleted] == ["AgentCheckpoint"]
