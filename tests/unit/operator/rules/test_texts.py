"""Conditions, sizes, durations and remedies."""

from datetime import UTC, datetime, timedelta

import pytest
from savepoint_operator.rules.status import texts
from savepoint_operator.rules.status.conditions import Condition, changed, merged, parsed_time, stamp

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def test_the_time_of_transition_moves_only_with_the_status() -> None:
    first = merged((), (Condition.of("Ready", False, "Pending"),), 1, NOW)
    second = merged(first, (Condition.of("Ready", False, "Uploading", "63%"),), 2, LATER)
    assert second == [
        {
            "type": "Ready",
            "status": "False",
            "observedGeneration": 2,
            "lastTransitionTime": "2026-11-24T12:00:00Z",
            "reason": "Uploading",
            "message": "63%",
        }
    ]
    third = merged(second, (Condition.of("Ready", True, "Ready"),), 2, LATER)
    assert third[0]["lastTransitionTime"] == "2026-11-24T12:05:00Z"


def test_other_conditions_stay_unchanged() -> None:
    before = merged((), (Condition.of("ConditionalWrites", None, "NotProbed"),), 1, NOW)
    after = merged(before, (Condition.of("Ready", True, "Ready"),), 1, LATER)
    assert [each["type"] for each in after] == ["ConditionalWrites", "Ready"]
    assert after[0] == before[0]
    assert after[0]["status"] == "Unknown"


def test_only_differences_are_written() -> None:
    current = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1], "f": "x"}
    assert changed(current, {"a": 1, "b": {"c": 2}, "e": [1], "f": "x"}) == {}
    assert changed(current, {"a": 2, "b": {"c": 2, "d": 4}, "e": [1, 2], "g": None}) == {
        "a": 2,
        "b": {"d": 4},
        "e": [1, 2],
    }
    assert changed(current, {"b": None, "h": {}}) == {"b": None, "h": {}}


@pytest.mark.parametrize("text", ["", None, "yesterday", "2026-13-01T00:00:00Z"])
def test_a_malformed_time_is_dropped(text: str | None) -> None:
    assert parsed_time(text) is None


def test_times_are_read_and_written() -> None:
    assert parsed_time("2026-11-24T12:00:00.123456Z") == NOW + timedelta(microseconds=123456)
    assert parsed_time("2026-11-24T12:00:00") == NOW
    assert stamp(NOW + timedelta(microseconds=5)) == "2026-11-24T12:00:00Z"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1Ki"),
        (5000, "4.9Ki"),
        (3 << 20, "3Mi"),
        (410 << 20, "410Mi"),
        (1 << 60, "1024Pi"),
    ],
)
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert texts.size_text(count) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0s"), (38, "38ms"), (3100, "3.1s"), (45_000, "45s"), (300_000, "5m"), (7_300_000, "2h"), (9e8, "10d")],
)
def test_durations_have_the_largest_fitting_unit(milliseconds: float, text: str) -> None:
    assert texts.duration_text(milliseconds) == text


def test_a_failure_names_the_remedy_once() -> None:
    message = texts.with_next_step("QuiesceTimeout", "It was resumed", "mail")
    assert message == 'It was resumed. Add agent.safe_point() or raise spec.quiesce.timeoutSeconds in policy "mail".'
    assert texts.with_next_step("QuiesceTimeout", message, "mail") == message
    own = "Agent was resumed. Add agent.safe_point(), or raise spec.quiesce.timeoutSeconds in the policy."
    named = own.replace("the policy", 'policy "mail"')
    assert texts.with_next_step("QuiesceTimeout", own, "mail") == named, "one remedy, with the policy's name"
    hold = "It took too long. Raise spec.quiesce.holdSeconds in the policy."
    assert texts.with_next_step("StateUnstable", hold, None) == hold.replace("the policy", "an AgentCheckpointPolicy")
    assert texts.with_next_step("Strange", "What happened.", None) == "What happened."
    assert texts.with_next_step("StageFull", "", None).startswith("StageFull. Raise spec.stage.sizeLimit")


def test_ages_are_never_negative() -> None:
    assert texts.ago(NOW - timedelta(minutes=41), NOW) == "41m ago"
    assert texts.ago(LATER, NOW) == "0s ago"
