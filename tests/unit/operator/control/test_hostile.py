"""A malicious pod with a valid token can neither exhaust the operator nor corrupt what it shows."""

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from savepoint.contract.control_protocol import (
    Ack,
    AttemptState,
    Committed,
    ComponentSummary,
    Heartbeat,
    Hello,
    ObjectName,
    Offer,
    Outcome,
    Progress,
    Refused,
    Replaced,
    RequestCheckpoint,
    Result,
    Stop,
    Timing,
    decode,
    encode,
)
from savepoint_operator.control.rate_limit import BURST_ATTEMPTS, BURST_BYTES, BYTES_PER_SECOND, RateLimit, RateLimits
from savepoint_operator.control.sidecar_session import POD_CHECK_SECONDS
from savepoint_operator.metrics import Metrics
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.attempt import offer_problem
from savepoint_operator.rules.sanitize import MAX_DETAIL, MAX_MESSAGE, MAX_PATH, sanitized
from savepoint_operator.rules.status.conditions import parsed_time, precise_stamp

from tests.cpu import cpu_ratio
from tests.fakes.control_harness import ControlHarness, attempt, until
from tests.fakes.operator_ports import ManualClock


async def test_results_of_attempts_that_were_not_ordered_are_rate_limited(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    for number in range(BURST_ATTEMPTS + 40):
        await pod.request(Result(attempt(number), "Failed", "StageFull"), Ack)
    assert len(harness.recorder.calls_of("failed")) == BURST_ATTEMPTS
    harness.clock.advance(2)
    for number in range(BURST_ATTEMPTS + 40, BURST_ATTEMPTS + 50):
        await pod.request(Result(attempt(number), "Failed", "StageFull"), Ack)
    assert len(harness.recorder.calls_of("failed")) == BURST_ATTEMPTS + 2


async def test_a_pods_own_offers_and_requests_share_the_limit(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    for number in range(BURST_ATTEMPTS - 1):
        await pod.request(Result(attempt(number), "Failed", "StageFull"), Ack)
    await pod.request(harness.offer(attempt(1000), 1), Committed)
    refused = await pod.request(harness.offer(attempt(1001), 1), Refused)
    assert refused.reason == "Refused"
    assert (await pod.request(RequestCheckpoint("r", "Agent"), Refused)).reason == "Refused"
    await pod.request(harness.offer(attempt(1000), 1), Committed)  # a repeated offer is answered


async def test_large_messages_do_not_pile_up_while_the_store_is_unreachable(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.store.hold()
    await pod.send(harness.offer(attempt(1), 1))
    large = Result(attempt(2), "Failed", "StageFull", "x" * 1_000_000)
    for _ in range(3):
        await pod.send(large)
        harness.clock.advance(10)  # within its rate limit
        await asyncio.sleep(0.05)
    for _ in range(3):
        await pod.send(large)
        harness.clock.advance(10)
    await asyncio.sleep(0.2)
    harness.store.release()
    assert await pod.closed() == 1008


def test_a_rate_limit_refills() -> None:
    clock = ManualClock()
    limit = RateLimit(clock.monotonic, 10, 2)
    assert limit.spend(10) == 0
    assert limit.spend(4) == 2
    clock.advance(2)
    assert not limit.take()
    clock.advance(100)
    assert all(limit.take() for _ in range(10))
    assert not limit.take()


def test_a_reconnect_does_not_reset_a_pods_rate_limit() -> None:
    rate_limits = RateLimits(ManualClock().monotonic)
    rate_limits.of("a").spend(BURST_BYTES)
    assert rate_limits.of("a").spend(BYTES_PER_SECOND) == 1
    assert rate_limits.of("b").spend(1) == 0


def test_decoding_the_most_expensive_message_costs_little_more_than_parsing_it() -> None:
    text = encode(Hello("sidecar", 1, "1", attempts=tuple(AttemptState("", "") for _ in range(30_000))))
    assert cpu_ratio(lambda: decode(text), lambda: json.loads(text)) < 40


@pytest.mark.parametrize("word", ["Ready", "Unchanged", "Committing", "Pending", "no word", "", "x" * 1000, "Ready\n"])
def test_a_failure_cannot_carry_a_reason_that_means_something_else(word: str) -> None:
    result = sanitized(Result(attempt(1), "Failed", word))
    assert isinstance(result, Result)
    assert result.reason in ("Failed", "")
    outcome = sanitized(Outcome(word))
    assert isinstance(outcome, Outcome)
    assert outcome.outcome == "RestoreFailed"


def test_shown_texts_and_numbers_are_bounded_and_encodable() -> None:
    result = sanitized(Result(attempt(1), "Odd", "StageFull", "\ud800" + "x" * 10_000, -5))
    assert result == Result(attempt(1), "Failed", "StageFull", "?" + "x" * (MAX_MESSAGE - 1), 0)
    whole = Result(attempt(1), "Failed", "RunAsUserRequired", "uid 7", 5, agent_uid=7)
    assert sanitized(whole) == whole
    beat = sanitized(Heartbeat(True, "y" * 5000))
    assert isinstance(beat, Heartbeat)
    assert len(beat.detail) == MAX_DETAIL
    assert sanitized(Progress("a", "Ready", 1 << 60, -1, -1)) == Progress("a", "", 100, 0, 0)
    odd = sanitized(Progress("", "Fetching", reason="not a word", message="z" * 5000))
    assert odd == Progress("", "Fetching", reason="Unavailable", message="z" * MAX_MESSAGE)
    outcome = sanitized(Outcome("Restored", "", "", -1, 1 << 62))
    assert isinstance(outcome, Outcome)
    assert outcome.bytes_restored == 0
    assert outcome.milliseconds < 1 << 50
    huge = (Replaced("p" * 5000, -1, ("n" * 5000, "\ud800") * 50),) * 50
    outcome = sanitized(Outcome("Restored", replaced=huge))
    assert isinstance(outcome, Outcome)
    assert outcome.replaced == (Replaced("p" * MAX_PATH, 0, ("n" * MAX_PATH, "?") * 5),) * 16


def test_well_formed_messages_pass_unchanged() -> None:
    for message in (
        Hello("sidecar", 1, "0.1.0", "n1", 3, (AttemptState(attempt(1), "Uploading"),)),
        Result(attempt(1), "Failed", "QuiesceTimeout", "step crawl runs for 94 s", 10_000),
        Result(attempt(1), "Unchanged", pause_milliseconds=3),
        Progress("", "Restoring", 5, 10, 200),
        Progress("", "Fetching", reason="StoreUnavailable", message="the store cannot be reached from this pod"),
        Outcome("KeptLocal", "", "", 0, 12),
        Outcome("Restored", "", "", 5, 12, config_changed=True),
        Outcome("IntegrityError", "pack 1 is damaged", "packs/1-a"),
        Outcome("Restored", replaced=(Replaced("/work/.savepoint/replaced-1", 3, ("a", "b", "c")),)),
    ):
        assert sanitized(message) == message


def offer(**more: Any) -> Offer:
    first = Offer(attempt(1), ObjectName("a" * 64, 10), (), "Interval", "Fuzzy", 1, 1, 1, Timing(""))
    return replace(first, **more)


GOOD = ComponentSummary("documents", "Memory", "b" * 64, 1)


@pytest.mark.parametrize(
    "more",
    [
        {"trigger": "Zzzzzzzz"},
        {"consistency": "Perfect"},
        {"uploaded_bytes": -1},
        {"open_operations": -1},
        {"components": (GOOD, GOOD)},
        {"components": (ComponentSummary("x" * 5000, "Memory", "b" * 64, 1),)},
        {"components": (ComponentSummary("x", "Gold", "b" * 64, 1),)},
        {"components": (ComponentSummary("x", "Memory", "b", 1),)},
        {"components": (ComponentSummary("x", "Memory", "b" * 64, -1),)},
        {"uncertain_count": -1},
    ],
)
def test_an_offer_that_cannot_be_shown_is_refused(more: dict[str, Any]) -> None:
    assert offer_problem(offer(components=(GOOD,), step="crawl")) is None
    assert offer_problem(offer(**more)) is not None


async def test_a_refused_offer_is_answered_and_the_session_continues(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    bad = harness.offer(attempt(1), 1, trigger="Zzzz")
    assert "trigger" in (await pod.request(bad, Refused)).message
    await pod.request(Heartbeat(), Ack)
    await until(lambda: not harness.recorder.calls_of("committed"))


def test_reasons_from_pods_create_no_time_series() -> None:
    metrics = Metrics()
    for number in range(200):
        word = "Made" + "".join(chr(65 + int(digit)) for digit in str(number))
        metrics.restore_ended(word, 1)
        metrics.checkpoint(word, word, 1.0)
    metrics.checkpoint("StageFull", "Interval")
    text = metrics.text().decode()
    assert "Made" not in text
    assert 'savepoint_checkpoints_total{result="StageFull",trigger="Interval"} 1.0' in text
    assert 'savepoint_restores_total{outcome="Other"} 200.0' in text


def test_a_pods_timestamps_are_normalised_or_dropped() -> None:
    assert parsed_time("0001-01-01T00:00:00+23:59") is None
    early = parsed_time("0001-01-02")
    assert early is not None
    assert precise_stamp(early) == "0001-01-02T00:00:00.000000Z"


async def test_a_connection_without_a_token_is_dropped() -> None:
    harness = ControlHarness()
    await harness.lead(max_unauthenticated=4, unauthenticated_seconds=0.3)
    try:
        harness.pod("a")
        honest = await harness.dial("a")
        for part in (b"", b"GET /v1/control HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20):
            reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
            writer.write(part)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        await honest.send(Hello("restore", 1, "1"))
        await honest.granted()
    finally:
        await harness.close()


async def test_many_silent_connections_do_not_keep_pods_out() -> None:
    harness = ControlHarness()
    await harness.lead(max_unauthenticated=4)
    try:
        silent = [await asyncio.open_connection("127.0.0.1", harness.port) for _ in range(40)]
        await asyncio.sleep(0.1)
        ended = sum(reader.at_eof() or reader.exception() is not None for reader, _ in silent)
        assert ended >= 36
        await harness.grant("a")
        for _, writer in silent:
            writer.close()
    finally:
        await harness.close()


async def test_the_session_of_a_pod_that_no_longer_exists_ends(harness: ControlHarness) -> None:
    """Otherwise a stolen token, shown while it was valid, would keep the agent's next pod out forever."""
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.pod_resolver.incarnations["a"] = Refusal("PodGone", "Pod demo/a does not exist.")
    await pod.request(Heartbeat(), Ack)
    harness.clock.advance(POD_CHECK_SECONDS + 1)
    await pod.request(Heartbeat(), Ack)
    assert (await pod.expect(Stop)).reason == "PodGone"
    assert await pod.closed() == 1000


async def test_a_session_survives_other_refusals(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.pod_resolver.incarnations["a"] = Refusal("AmbiguousAgent", "Another pod has come.")
    harness.clock.advance(POD_CHECK_SECONDS + 1)
    await pod.request(Heartbeat(), Ack)
    await pod.request(Heartbeat(), Ack)
