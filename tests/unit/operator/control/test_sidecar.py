"""The sidecar's side of the protocol: orders, URLs, commits, the end."""

import asyncio
from dataclasses import replace

import pytest
from savepoint.contract.control_protocol import (
    Ack,
    AttemptState,
    Checkpoint,
    Committed,
    Heartbeat,
    NeedUrls,
    ObjectName,
    Progress,
    Refused,
    Released,
    RequestCheckpoint,
    Result,
    Stop,
    Urls,
    Wait,
    Welcome,
)
from savepoint.errors import Refused as RefusedError
from savepoint.errors import StoreDenied, Unavailable
from savepoint_operator.model.views import CheckpointName, Refusal

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until
from tests.fakes.operator_ports import Signer

RANDOM = "0123456789abcdef" * 2


async def test_an_ordered_checkpoint_is_committed(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    assert welcome.parent is None
    assert welcome.pending_url.startswith(f"https://store.test/demo/coder/{welcome.pending_key}?method=PUT")
    assert welcome.pending_key.startswith("pending/1-")
    await pod.request(Heartbeat(True, "step crawl"), Ack)
    assert harness.server is not None
    orders = harness.server.orders
    view = orders.session(AGENT)
    assert view is not None
    assert (view.epoch, view.sdk_session, view.detail, view.attempt) == (1, True, "step crawl", None)

    await orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    order = await pod.expect(Checkpoint)
    assert (order.attempt, order.trigger, order.deadline_seconds, order.after) == (attempt(1), "Interval", 60, "Resume")
    pack = f"packs/1-{RANDOM}"
    urls = await pod.request(NeedUrls("1", put=(pack,), get=(pack,)), Urls)
    assert set(urls.put) == set(urls.get) == {pack}
    await pod.send(Progress(attempt(1), "Uploading", 50))
    harness.recorder.names[attempt(1)] = CheckpointName(41, "coder-41")
    offer = harness.offer(attempt(1), 1)
    committed = await pod.request(offer, Committed)
    assert committed.checkpoint.name == "coder-41"
    assert (committed.checkpoint.number, committed.checkpoint.sequence) == (41, 2)
    assert committed.checkpoint.manifest == offer.manifest
    assert [each.stage for each in harness.recorder.calls_of("progressed")] == ["Uploading"]
    view = orders.session(AGENT)
    assert view is not None
    assert view.attempt is None
    assert harness.chain() == [("grant", 1, 1), ("checkpoint", 2, 1)]


async def test_urls_are_signed_for_the_store_as_it_is_now(harness: ControlHarness) -> None:
    class Rotated(Signer):
        def presign_put(self, key: str, expires_seconds: int) -> str:
            return super().presign_put(key, expires_seconds) + "&by=the-new-key"

    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    pack = f"packs/1-{RANDOM}"
    harness.stores.error = StoreDenied("the new credentials are wrong")
    refused = await pod.request(NeedUrls("1", put=(pack,)), Refused)
    assert (refused.request, refused.reason) == ("1", "StoreDenied")
    harness.stores.error = None
    harness.stores.store = replace(harness.stores.store, signer=Rotated())
    urls = await pod.request(NeedUrls("2", put=(pack,)), Urls)
    assert urls.put[pack].endswith("&by=the-new-key")


async def test_a_repeated_offer_commits_once(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    first, second = await pod.request(offer, Committed), await pod.request(offer, Committed)
    assert first == second
    assert len(harness.chain()) == 2


async def test_a_commit_whose_answer_was_lost_is_read_back(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.store.lose_answer_of = "commits/"
    await pod.request(harness.offer(attempt(1), 1), Committed)
    assert harness.chain() == [("grant", 1, 1), ("checkpoint", 2, 1)]


async def test_a_connection_lost_while_committing_loses_nothing(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    harness.store.hold()
    await pod.send(offer)
    await asyncio.sleep(0.02)
    await pod.close()
    again = await harness.hello("a", "sidecar", epoch=1, attempts=(AttemptState(attempt(1), "Committing"),))
    harness.store.release()
    welcome = await again.expect(Welcome)
    assert welcome.epoch == 1
    committed = await again.request(offer, Committed)
    assert committed.checkpoint.sequence == 2
    assert harness.chain() == [("grant", 1, 1), ("checkpoint", 2, 1)]
    assert not harness.recorder.calls_of("failed")


async def test_one_attempt_at_a_time_and_every_order_may_come_twice(harness: ControlHarness) -> None:
    assert harness.server is not None
    orders = harness.server.orders
    await harness.grant("a")
    with pytest.raises(Unavailable):
        await orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    pod, _ = await harness.sidecar("a")
    await orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    with pytest.raises(RefusedError) as caught:
        await orders.checkpoint(AGENT, attempt(2), "Manual", 60)
    assert caught.value.code == "AttemptInFlight"
    with pytest.raises(RefusedError):
        await orders.collect(AGENT, "default", frozenset())
    await pod.expect(Checkpoint)
    await pod.request(Result(attempt(1), "Failed", "QuiesceTimeout", "in step crawl"), Ack)
    await pod.request(Result(attempt(1), "Failed", "QuiesceTimeout", "in step crawl"), Ack)
    assert [each.reason for each in harness.recorder.calls_of("failed")] == ["QuiesceTimeout"]
    await orders.checkpoint(AGENT, attempt(1), "Interval", 60)  # a stale order for an ended attempt
    await orders.checkpoint(AGENT, attempt(2), "Manual", 60)
    assert (await pod.expect(Checkpoint)).attempt == attempt(2)
    await pod.request(Result(attempt(2), "Unchanged"), Ack)
    assert [each.attempt for each in harness.recorder.calls_of("unchanged")] == [attempt(2)]
    assert (await orders.collect(AGENT, "default", frozenset())).bytes == 0


async def test_a_silent_sidecar_fails_its_attempt_at_the_deadline_and_a_late_offer_is_refused(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    await pod.close()
    harness.clock.advance(64)
    await asyncio.sleep(0.02)
    assert not harness.recorder.calls_of("failed")
    harness.clock.advance(2)
    await until(lambda: harness.recorder.calls_of("failed"))
    assert harness.recorder.calls_of("failed")[0].reason == "DeadlineExceeded"
    pod, _ = await harness.sidecar("a", attempts=(AttemptState(attempt(1), "Uploading"),))
    assert (await pod.request(harness.offer(attempt(1), 1), Refused)).reason == "DeadlineExceeded"
    assert len(harness.chain()) == 1
    await pod.request(harness.offer(attempt(2), 1), Committed)


async def test_an_attempt_survives_a_reconnect(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60, "Terminate")
    await pod.expect(Checkpoint)
    await pod.close()
    harness.clock.advance(20)
    pod, _ = await harness.sidecar("a", epoch=1, attempts=(AttemptState(attempt(1), "Uploading"),))
    await pod.request(Heartbeat(), Ack)  # the order is not repeated
    await pod.close()
    pod, _ = await harness.sidecar("a", epoch=1)  # its container restarted: it knows no attempt
    order = await pod.expect(Checkpoint)
    assert (order.attempt, order.deadline_seconds, order.after) == (attempt(1), 40, "Terminate")
    await pod.request(harness.offer(attempt(1), 1), Committed)


async def test_an_attempt_ordered_by_an_earlier_leader_is_adopted(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a", attempts=(AttemptState(attempt(7), "Uploading"),))
    await pod.request(Heartbeat(), Ack)
    assert harness.server is not None
    view = harness.server.orders.session(AGENT)
    assert view is not None
    assert view.attempt == attempt(7)
    await harness.server.orders.checkpoint(AGENT, attempt(7), "Interval", 60)  # reconcile repeats its order
    await pod.request(harness.offer(attempt(7), 1), Committed)


async def test_the_agent_requests_a_checkpoint(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    order = await pod.request(RequestCheckpoint("r1", "Agent", "before deploy"), Checkpoint)
    assert (order.request, order.trigger) == ("r1", "Agent")
    refused = await pod.request(RequestCheckpoint("r2", "Agent"), Refused)
    assert (refused.reason, refused.request) == ("AttemptInFlight", "r2")
    await pod.request(harness.offer(order.attempt, 1, trigger="Agent"), Committed)
    harness.recorder.refuse_requests = Refusal("Suspended", "the policy is suspended")
    refused = await pod.request(RequestCheckpoint("r3", "Agent"), Refused)
    assert (refused.reason, refused.request) == ("Suspended", "r3")


async def test_a_shutdown_commits_releases_and_admits_the_successor_at_once(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.pod("b")
    successor = await harness.hello("b", "restore")
    await successor.expect(Wait)
    order = await pod.request(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    await pod.send(harness.offer(order.attempt, 1, trigger="Shutdown"))
    await pod.send(Released(1))
    await pod.close()  # without waiting for the answers
    grant = await successor.receive()
    assert grant.welcome.epoch == 2  # type: ignore[union-attr]
    assert grant.welcome.parent.sequence == 2  # type: ignore[union-attr]
    assert harness.recorder.calls_of("released") == [("a", False)]


async def test_a_reconnecting_sidecar_revokes_its_release(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(Released(1), Ack)
    await pod.close()
    again, _ = await harness.sidecar("a")
    harness.pod("b")
    successor = await harness.hello("b", "restore")
    assert (await successor.expect(Wait)).reason == "PredecessorRunning"
    await again.request(harness.offer(attempt(1), 1), Committed)


async def test_a_finished_run_is_completed_and_the_next_pod_starts_fresh(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1, trigger="Finish", completed=True), Committed)
    await pod.request(Released(1, completed=True), Ack)
    assert [each.record.kind for each in harness.recorder.calls_of("committed")] == ["checkpoint", "completed"]
    await pod.close()
    welcome = await harness.grant("b")
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "checkpoint", "completed", "grant"]


async def test_a_run_completes_without_a_checkpoint(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(Released(1, completed=True), Ack)
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "completed"]
    again = await harness.hello("a", "sidecar")
    assert (await again.expect(Stop)).reason == "Completed"


async def test_a_superseded_sidecar_is_stopped_and_commits_nothing(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    offer = harness.offer(attempt(1), 1)
    await pod.request(Released(1), Ack)  # it releases and yet continues
    await harness.grant("b")
    assert (await pod.expect(Stop)).reason == "Fenced"
    assert await pod.closed() == 1000
    again = await harness.hello("a", "sidecar", epoch=1, attempts=(AttemptState(attempt(1), "Committing"),))
    assert (await again.expect(Stop)).reason == "Fenced"
    assert offer.attempt not in str(harness.chain())
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "grant"]
    assert [each.reason for each in harness.recorder.calls_of("failed")] == ["SourcePodReplaced"]


async def test_an_offer_under_an_epoch_that_another_operator_superseded_is_refused(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    old, old_port = harness.server, harness.port
    await harness.lead()  # another operator took over; the old one was suspended and does not know
    harness.end("a")
    harness.clock.advance(60)
    await harness.grant("b")
    refused = await pod.request(harness.offer(attempt(1), 1), Refused)
    assert refused.reason == "Fenced"
    assert (await pod.expect(Stop)).reason == "Fenced"
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "grant"]
    assert old is not None
    assert old_port
    await old.stop()


async def test_a_sidecar_without_an_epoch_is_stopped(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.hello("a", "sidecar")
    assert (await pod.expect(Stop)).reason == "Fenced"


@pytest.mark.parametrize("lie", ["no pack", "no manifest", "another epoch", "another attempt"])
async def test_an_offer_that_does_not_match_the_store_is_not_committed(harness: ControlHarness, lie: str) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 2 if lie == "another epoch" else 1)
    if lie == "no pack":
        harness.repository().store.delete(f"packs/{offer.packs[0].name}")
    if lie == "no manifest":
        offer = replace(offer, manifest=ObjectName("ab" * 32, 100))
    if lie == "another attempt":
        offer = replace(offer, attempt=attempt(2))
    refused = await pod.request(offer, Refused)
    assert refused.attempt == offer.attempt
    assert [each.reason for each in harness.recorder.calls_of("failed")] == [refused.reason]
    assert len(harness.chain()) == 1
    await pod.request(harness.offer(attempt(3), 1), Committed)  # the session continues


async def test_a_commit_succeeds_once_the_store_is_reachable_again(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    harness.store.broken = True
    await pod.send(offer)
    for _ in range(3):
        await asyncio.sleep(0.02)
        harness.clock.advance(1)
    assert harness.recorder.calls_of("delayed")
    harness.store.broken = False
    await asyncio.sleep(0.02)
    harness.clock.advance(8)
    await pod.expect(Committed)


async def test_a_commit_fails_at_its_deadline_if_the_store_stays_unreachable(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    harness.store.broken = True
    await pod.send(offer)
    for _ in range(30):
        await asyncio.sleep(0.01)
        harness.clock.advance(4)
    assert (await pod.expect(Refused)).reason == "StoreUnavailable"
    assert [each.reason for each in harness.recorder.calls_of("failed")] == ["StoreUnavailable"]
    harness.store.broken = False
    await pod.request(offer, Committed)  # it may be offered again: only the store counts


async def test_a_heartbeat_is_acknowledged_while_the_store_is_slow(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    harness.store.hold()
    await pod.send(offer)
    await pod.request(Heartbeat(), Ack)
    harness.store.release()
    await pod.expect(Committed)


async def test_a_rollback_stops_the_sidecar_and_the_next_start_restores_the_chosen_one(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    first = await pod.request(harness.offer(attempt(1), 1), Committed)
    await pod.request(harness.offer(attempt(2), 1), Committed)
    assert harness.server is not None
    orders = harness.server.orders
    await orders.checkpoint(AGENT, attempt(3), "Interval", 60)
    await pod.expect(Checkpoint)
    head = await orders.rollback(AGENT, attempt(9), first.checkpoint.sequence, "default")
    assert head == await orders.rollback(AGENT, attempt(9), first.checkpoint.sequence, "default")
    assert (await pod.expect(Stop)).reason == "RolledBack"
    assert [each.reason for each in harness.recorder.calls_of("failed")] == ["RolledBack"]
    late = await harness.hello("a", "sidecar", epoch=1)
    assert (await late.expect(Stop)).reason == "RolledBack"

    same = await harness.grant("a")  # its init container runs again and gets its own epoch
    assert same.epoch == 2
    assert same.parent is not None
    assert (same.parent.name, same.parent.manifest) == ("coder-1", first.checkpoint.manifest)
    assert same.parent.sequence == head.record.sequence
    pod, welcome = await harness.sidecar("a")
    assert welcome.parent == same.parent
    committed = await pod.request(harness.offer(attempt(4), 2), Committed)
    assert committed.checkpoint.number == 3


async def test_a_reset_starts_fresh(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1), Committed)
    assert harness.server is not None
    await harness.server.orders.rollback(AGENT, attempt(9), None, "default")
    await pod.expect(Stop)
    await harness.leave(pod)
    harness.end("a")
    harness.clock.advance(20)
    assert (await harness.grant("b")).parent is None


async def test_numbers_rise_even_if_an_older_attempt_commits_later(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    for number, name in ((8, "coder-8"), (7, "coder-7")):
        harness.recorder.names[attempt(number)] = CheckpointName(number, name)
    await pod.request(harness.offer(attempt(8), 1), Committed)
    committed = await pod.request(harness.offer(attempt(7), 1), Committed)
    assert (committed.checkpoint.name, committed.checkpoint.number) == ("coder-7", 9)
    assert len(harness.chain()) == 3


async def test_without_a_name_in_time_the_next_number_is_used(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")

    async def no_cluster() -> None:
        raise Unavailable("no API server")

    harness.recorder.before_naming = no_cluster
    assert (await pod.request(harness.offer(attempt(8), 1), Committed)).checkpoint.name == "coder-1"


async def test_a_malformed_offer_or_request_is_refused_and_the_session_continues(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    refused = await pod.request(replace(offer, trigger="x" * 5000), Refused)
    assert (refused.reason, refused.attempt) == ("Refused", attempt(1))
    assert (await pod.request(RequestCheckpoint("r1", "Manual"), Refused)).request == "r1"
    await pod.send(Result("not an attempt", "Failed"))
    await pod.request(offer, Committed)
    assert not harness.recorder.calls_of("failed")


async def test_a_long_session_is_renewed_when_it_is_idle(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    harness.clock.advance(2 * 24 * 3600 + 1)
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    await pod.request(Heartbeat(), Ack)
    await pod.request(harness.offer(attempt(1), 1), Committed)
    await pod.request(Heartbeat(), Ack)
    assert await pod.closed() == 4503
