"""Decisions about the attempt in flight, and which messages about attempts are valid."""

from dataclasses import replace
from typing import Any

import pytest
from savepoint.contract.control_protocol import AttemptState, ObjectName, Offer, RequestCheckpoint, Timing
from savepoint_operator.rules.attempt import (
    ANSWER_GRACE_SECONDS,
    SHOWN_CHARACTERS,
    SHOWN_OPERATIONS,
    InFlight,
    OrderAction,
    ReconnectAction,
    offer_problem,
    order_action,
    reconnect_action,
    request_problem,
    shortened,
)

ATTEMPT = InFlight("a" * 32, "Interval", deadline=100.0)


def test_one_attempt_at_a_time() -> None:
    assert order_action(None, False, "b" * 32) is OrderAction.SEND
    assert order_action(ATTEMPT, False, "b" * 32) is OrderAction.BUSY


def test_an_order_may_be_repeated() -> None:
    assert order_action(ATTEMPT, False, ATTEMPT.id) is OrderAction.KNOWN
    assert order_action(None, True, ATTEMPT.id) is OrderAction.KNOWN


def test_a_reconnect_continues_the_attempt_or_repeats_the_order() -> None:
    assert reconnect_action(None, ()) is ReconnectAction.NOTHING
    assert reconnect_action(ATTEMPT, (AttemptState(ATTEMPT.id, "Uploading"),)) is ReconnectAction.CONTINUE
    assert reconnect_action(ATTEMPT, ()) is ReconnectAction.RESEND
    assert reconnect_action(ATTEMPT, (AttemptState("b" * 32, "Uploading"),)) is ReconnectAction.RESEND


def test_the_sidecar_may_report_its_own_failure_first() -> None:
    assert ATTEMPT.expires_in(90.0) == 10.0 + ANSWER_GRACE_SECONDS
    assert ATTEMPT.expires_in(1000.0) == 0.0
    assert ATTEMPT.seconds_left(90.5) == 9
    assert ATTEMPT.seconds_left(1000.0) == 1
    assert ATTEMPT.in_phase("Uploading").phase == "Uploading"


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"attempt": "A" * 32}, False),
        ({"attempt": "a" * 33}, False),
        ({"manifest": ObjectName("../" + "b" * 61, 10)}, False),
        ({"manifest": ObjectName("b" * 64, 0)}, False),
        ({"trigger": "x" * 5000}, False),
        ({"trigger": ""}, False),
    ],
)
def test_a_malformed_offer_is_refused_before_the_store_is_read(change: dict[str, Any], valid: bool) -> None:
    offer = Offer("a" * 32, ObjectName("b" * 64, 10), (), "Interval", "Application", 0, 0, 0, Timing(""))
    assert (offer_problem(replace(offer, **change)) is None) is valid


def test_a_pod_may_request_only_its_own_triggers() -> None:
    assert request_problem(RequestCheckpoint("r", "Agent")) is None
    assert request_problem(RequestCheckpoint("r", "Manual"))
    assert request_problem(RequestCheckpoint("r" * 65, "Agent"))
    assert request_problem(RequestCheckpoint("r", "Agent", "x" * 1025))


def test_any_number_of_uncertain_operations_is_committed_and_shortened_only_for_the_status() -> None:
    offer = Offer("a" * 32, ObjectName("b" * 64, 10), (), "Interval", "Application", 0, 0, 0, Timing(""))
    many = replace(offer, step="s" * 5000, uncertain_operations=tuple(f"{n}-{'x' * 2000}" for n in range(5000)))
    assert offer_problem(many) is None
    shown = shortened(many)
    assert shown.uncertain_count == 5000 and len(shown.uncertain_operations) == SHOWN_OPERATIONS
    assert shown.uncertain_operations[1].startswith("1-x")
    assert {len(shown.step or ""), *map(len, shown.uncertain_operations)} == {SHOWN_CHARACTERS}
    assert shortened(replace(offer, uncertain_operations=("a",), uncertain_count=7)).uncertain_count == 7
    assert shortened(offer) == offer
