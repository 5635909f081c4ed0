"""The statuses of checkpoints and restores."""

from datetime import UTC, datetime
from typing import Any

import pytest
from savepoint.contract.control_protocol import (
    ObjectName,
    Offer,
    Outcome,
    PolicyTerms,
    Progress,
    Replaced,
    Result,
    Timing,
)
from savepoint.repository.format.commit import ChainRecord, CommitRecord, ManifestName, head_of
from savepoint_operator.model.views import AgentRef, Incarnation, PodIdentity
from savepoint_operator.rules.status import checkpoint_status, restore_status

NOW = datetime(2026, 11, 24, tzinfo=UTC)
MANIFEST = ManifestName("ab" * 32, 10)
INCARNATION = Incarnation(
    AgentRef("demo", "coder"), PodIdentity("demo", "coder-1", "u1"), "n1", "", PolicyTerms(), None, "default"
)


def head(manifest: ManifestName | None = MANIFEST) -> ChainRecord:
    return head_of(
        CommitRecord(
            kind="checkpoint",
            namespace="demo",
            agent="coder",
            sequence=2,
            epoch=1,
            pod_uid="u1",
            node="n1",
            attempt="cd" * 16,
            manifest=manifest,
            previous="ef" * 32,
            time="2026-11-24T00:00:00.000000Z",
            number=1,
            name="coder-1",
            trigger="Manual",
            run=1,
        )
    )


def offer(**more: Any) -> Offer:
    fields: dict[str, Any] = {"timing": Timing("2026-11-24T00:00:00Z"), "uploaded_bytes": 5, "stored_bytes": 10, **more}
    return Offer("cd" * 16, ObjectName("ab" * 32, 10), (), "Manual", "Application", logical_bytes=20, **fields)


def test_a_started_checkpoint_shows_trigger_and_pod() -> None:
    pod = ("coder-1", "u1", "n1")
    assert checkpoint_status.started("a", "Manual", "pod/x", "before mail", pod) == {
        "attempt": "a",
        "trigger": {"type": "Manual", "requestedBy": "pod/x", "reason": "before mail"},
        "podRef": {"name": "coder-1", "uid": "u1"},
        "nodeName": "n1",
    }
    assert checkpoint_status.started("a", "", "", "", ("", "", "")) == {"attempt": "a", "trigger": {"type": "Agent"}}


@pytest.mark.parametrize(
    ("trigger", "disruption", "shown"),
    [
        ("Shutdown", "", ("Shutdown", "")),
        ("Shutdown", "EvictionByEvictionAPI", ("Drain", "EvictionByEvictionAPI")),
        ("Shutdown", "PreemptionByScheduler", ("Shutdown", "PreemptionByScheduler")),
        ("Finish", "", ("Agent", "the agent has finished its run")),
        ("Interval", "EvictionByEvictionAPI", ("Interval", "")),
    ],
)
def test_triggers_are_shown_with_the_pods_disruption(trigger: str, disruption: str, shown: tuple[str, str]) -> None:
    assert checkpoint_status.shown_trigger(trigger, disruption) == shown


def test_a_checkpoint_is_in_progress_until_its_reason_is_final() -> None:
    assert checkpoint_status.in_progress("")
    assert checkpoint_status.in_progress("Uploading")
    assert not checkpoint_status.in_progress("Ready")


def test_a_checkpoint_in_progress_shows_phase_and_percentage() -> None:
    patch, condition = checkpoint_status.running("Uploading", Progress("a", "Uploading", 163, 1, 2))
    assert patch["progress"] == {"percent": 100, "bytesDone": 1, "bytesTotal": 2}
    assert (condition.status, condition.reason) == ("False", "Uploading")
    patch, condition = checkpoint_status.running("Pending", None, "It waits.")
    assert "progress" not in patch
    assert condition.message == "It waits."


def test_a_committed_checkpoint_shows_what_its_offer_describes() -> None:
    timing = Timing("2026-11-24T00:00:00Z", "nonsense", None, None)
    patch, condition = checkpoint_status.committed(
        offer(timing=timing, uncertain_operations=("e1",), step="s"), head(), "default", "coder-0", NOW
    )
    assert condition.status == "True"
    assert patch["type"] == "Incremental"
    assert patch["parentName"] == "coder-0"
    assert patch["execution"] == {"openOperations": 0, "step": "s", "uncertainCount": 1, "uncertainOperations": ["e1"]}
    assert patch["timing"] == {"completion": head().record.time, "start": "2026-11-24T00:00:00.000000Z"}
    assert "pause" not in patch["summary"]
    patch, _ = checkpoint_status.committed(offer(uploaded_bytes=10), head(), "default", "", NOW)
    assert patch["type"] == "Full"
    assert patch["location"]["manifestKey"] == f"demo/coder/manifests/{'ab' * 32}"
    patch, _ = checkpoint_status.committed(None, head(None), "default", "", NOW)
    assert patch["location"]["manifestKey"] == ""
    assert "size" not in patch


def test_an_unchanged_checkpoint_shows_its_pause_if_there_was_one() -> None:
    latest = {"sequence": 7, "summary": {"size": "5Ki"}}
    patch, condition = checkpoint_status.unchanged(latest, "coder-1", Result("a", "Unchanged", pause_milliseconds=3))
    assert (patch["sequence"], patch["summary"]["pause"], condition.status) == (7, "3ms", "True")
    patch, _ = checkpoint_status.unchanged({}, "coder-1", Result("a", "Unchanged"))
    assert "timing" not in patch


def test_the_end_of_a_restore_shows_its_outcome() -> None:
    def ended(outcome: Outcome, resolved: dict[str, Any] | None = None) -> tuple[dict[str, Any], str, str]:
        patch, condition = restore_status.ended(INCARNATION, 2, resolved, outcome, started=NOW, now=NOW)
        return patch, condition.status, condition.message

    patch, status, message = ended(Outcome("Restored", milliseconds=4000), {"checkpointName": "coder-41"})
    assert (patch["reason"], status, message) == ("Restored", "True", "Restored from coder-41 in 4.0s.")
    assert ended(Outcome("Fresh"))[1:] == ("True", "There is no checkpoint; the agent starts from nothing.")
    assert ended(Outcome("Strange"))[1:] == ("False", "Strange")
    assert ended(Outcome("IntegrityError", "Damaged.", "packs/a"))[2] == "Damaged. (object packs/a)"
    other = ended(Outcome("Restored", "coder-41 is back", config_changed=True), {"checkpointName": "coder-41"})
    assert other[1] == "True"
    assert other[2].startswith("coder-41 is back. The checkpoint was taken under another configuration")
    assert other[0]["targets"][0]["message"] == other[2]
    assert ended(Outcome("Fresh", config_changed=True))[2] == "There is no checkpoint; the agent starts from nothing."


def test_a_restore_lists_what_it_moved_aside() -> None:
    first = Replaced("/work/.savepoint/replaced-20260101-000000", 7, tuple("abcdef"))
    outcome = Outcome("Restored", replaced=(first, Replaced("/home/.savepoint/replaced-20260101-000000", 1, ("x",))))
    patch, _ = restore_status.ended(INCARNATION, 2, None, outcome, started=NOW, now=NOW)
    assert patch["replaced"][0] == {"path": first.path, "entries": 7, "names": list("abcdef")}
    assert [each["entries"] for each in patch["replaced"]] == [7, 1]
    message = restore_status.replaced_message(outcome)
    assert (
        f"{first.path}: 7 files or folders (a, b, c, d, e, …); /home/" in message
        and "1 files or folders (x)" in message
    )
    patch, _ = restore_status.ended(INCARNATION, 2, None, Outcome("Restored"), started=NOW, now=NOW)
    assert "replaced" not in patch


def test_a_restore_shows_its_progress_and_the_end_of_its_pod() -> None:
    patch, _ = restore_status.granted(
        INCARNATION, 2, {"checkpointName": "coder-41"}, Progress("", "Restoring", 50), NOW
    )
    assert (patch["reason"], patch["targets"][0]["message"]) == ("Restoring", "50% of coder-41")
    patch, _ = restore_status.granted(INCARNATION, 2, None, None, NOW)
    assert patch["reason"] == "Fetching"
    patch, condition = restore_status.pod_gone({"targets": [{"podUID": "u1"}]}, NOW)
    assert (patch["targets"][0]["state"], condition.status) == ("PodGone", "False")
    assert restore_status.pod_gone({}, NOW)[0]["targets"] == []
