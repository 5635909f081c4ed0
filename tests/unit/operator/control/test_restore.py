"""The init container's side of the protocol: which pod is granted, which one waits, and the answers it gets."""

import asyncio

import pytest
from savepoint.contract.control_protocol import Ack, Grant, Heartbeat, NeedUrls, Outcome, Progress, Refused, Urls, Wait
from savepoint.errors import StoreDenied
from savepoint_operator.control.restore_session import Backoff
from savepoint_operator.model.views import Incarnation, NodeState, PodState, Refusal

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until

RANDOM = "0123456789abcdef" * 2


async def test_the_first_pod_starts_fresh_and_the_next_restores(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.hello("a", "restore")
    welcome = (await pod.expect(Grant)).welcome
    assert (welcome.agent, welcome.namespace, welcome.epoch, welcome.run, welcome.parent) == (
        "coder",
        "demo",
        1,
        1,
        None,
    )
    assert bytes.fromhex(welcome.key) == harness.repository().key.expose()
    assert (welcome.pending_key, welcome.pending_url) == ("", "")
    await pod.request(Outcome("Fresh"), Ack)
    assert [each.outcome for each in harness.recorder.calls_of("restore_ended")] == ["Fresh"]
    await harness.leave(pod)

    sidecar, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    await sidecar.send(offer)
    await until(lambda: harness.recorder.calls_of("committed"))
    await harness.leave(sidecar)
    harness.end("a")
    harness.clock.advance(20)
    second = await harness.grant("b")
    assert second.epoch == 2
    assert second.run == 1
    assert second.parent is not None
    assert (second.parent.name, second.parent.number, second.parent.sequence) == ("coder-1", 1, 2)
    assert second.parent.manifest == offer.manifest
    assert harness.recorder.calls_of("granted") == [("a", 1, None), ("b", 2, "coder-1")]


async def test_the_same_pod_keeps_its_epoch(harness: ControlHarness) -> None:
    first, again = await harness.grant("a"), await harness.grant("a")
    assert (first.epoch, again.epoch) == (1, 1)
    assert harness.chain() == [("grant", 1, 1)]


async def test_a_successor_waits_for_a_running_predecessor(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    wait = await pod.expect(Wait)
    assert wait.reason == "PredecessorRunning"
    assert "Recreate" in wait.message
    await asyncio.sleep(0.05)
    assert harness.chain() == [("grant", 1, 1)]
    assert [each.reason for each in harness.recorder.calls_of("waiting")] == ["PredecessorRunning"]

    harness.end("a", PodState.TERMINAL)
    assert "15 s" in (await pod.expect(Wait)).message
    harness.clock.advance(15)
    assert (await pod.granted()).epoch == 2


async def test_a_lost_node_delays_the_grant(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.end("a", PodState.RUNNING, NodeState.LOST)
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    assert "lost" in (await pod.expect(Wait)).message
    harness.clock.advance(44)
    await asyncio.sleep(0.05)
    assert len(harness.chain()) == 1
    harness.clock.advance(2)
    assert (await pod.granted()).epoch == 2


async def test_only_one_of_two_successors_is_granted(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.end("a")
    harness.clock.advance(60)
    harness.pod("b")
    harness.pod("c")
    pods = [await harness.hello(uid, "restore") for uid in ("b", "c")]
    answers = [await pod.receive() for pod in pods]
    kinds = sorted(type(each).__name__ for each in answers)
    assert "Grant" in kinds
    assert harness.chain()[:2] == [("grant", 1, 1), ("grant", 2, 2)]
    await asyncio.sleep(0.05)
    assert len(harness.chain()) == 2


async def test_a_superseded_pod_is_refused(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.end("a", PodState.RUNNING, NodeState.LOST)
    harness.clock.advance(60)
    await harness.grant("b")
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Refused)).reason == "Fenced"
    await pod.request(Outcome("Fenced"), Ack)
    assert await pod.closed() == 1000


async def test_an_unreachable_store_makes_the_pod_wait_and_never_start_fresh(harness: ControlHarness) -> None:
    harness.pod("a")
    harness.store.broken = True
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Wait)).reason == "StoreUnavailable"
    harness.store.broken = False
    assert (await pod.expect(Grant)).welcome.epoch == 1


async def test_a_store_that_denies_access_makes_the_pod_wait(harness: ControlHarness) -> None:
    harness.pod("a")
    harness.stores.error = StoreDenied("the credentials were refused")
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Wait)).reason == "StoreDenied"
    harness.stores.error = None
    await pod.expect(Grant)


async def test_a_chain_restored_to_an_older_state_is_refused(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod_resolver.pins[AGENT] = (3, "ab" * 32)
    pod = await harness.hello("a", "restore")
    refused = await pod.expect(Refused)
    assert refused.reason == "RollbackDetected"
    assert "ProtectedAgent" in refused.message


async def test_a_pod_that_cannot_be_an_agent_is_refused(harness: ControlHarness) -> None:
    harness.pod("a")
    harness.pod_resolver.incarnations["a"] = Refusal("Ambiguous", "two pods bear the name coder; use a StatefulSet")
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Refused)).reason == "Ambiguous"
    assert await pod.closed() == 4403


async def test_a_refused_agent_pod_gets_its_outcome_recorded(harness: ControlHarness) -> None:
    harness.pod("a")
    found = harness.pod_resolver.incarnations["a"]
    assert isinstance(found, Incarnation)
    harness.pod_resolver.incarnations["a"] = Refusal("AmbiguousAgent", "two of them", incarnation=found)
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Refused)).reason == "AmbiguousAgent"
    await pod.request(Outcome("AmbiguousAgent", "two of them"), Ack)
    assert harness.recorder.calls_of("restore_ended")[0].outcome == "AmbiguousAgent"


async def test_a_transient_refusal_makes_the_pod_wait(harness: ControlHarness) -> None:
    harness.pod("a")
    known = harness.pod_resolver.incarnations["a"]
    assert isinstance(known, Incarnation)
    harness.pod_resolver.incarnations["a"] = Refusal("NoStore", "there is no store yet", retry=True, incarnation=known)
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Wait)).reason == "NoStore"
    assert [each.reason for each in harness.recorder.calls_of("waiting")] == ["NoStore"]
    harness.pod_resolver.incarnations["a"] = known
    await pod.expect(Grant)


async def test_a_restore_may_read_but_not_write(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.hello("a", "restore")
    await pod.expect(Grant)
    key = f"packs/9-{RANDOM}"
    urls = await pod.request(NeedUrls("1", get=(key,)), Urls)
    assert urls.get[key].startswith(f"https://store.test/demo/coder/{key}?method=GET")
    assert (await pod.request(NeedUrls("2", put=(f"packs/1-{RANDOM}",)), Refused)).request == "2"
    assert (await pod.request(NeedUrls("3", get=("repository.json",)), Refused)).request == "3"
    await pod.send(Progress("", "Fetching", 10))
    await pod.send(Progress("", "Fetching", reason="StoreUnavailable", message="it cannot be reached from this pod"))
    await pod.request(Outcome("IntegrityError", "packs/… is damaged"), Ack)
    progressing, delayed = harness.recorder.calls_of("restore_progressed")
    assert (progressing.percent, progressing.reason) == (10, "")
    assert (delayed.reason, delayed.message) == ("StoreUnavailable", "it cannot be reached from this pod")


async def test_no_request_is_allowed_before_the_grant(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    await pod.expect(Wait)
    await pod.send(NeedUrls("1", get=(f"packs/1-{RANDOM}",)))
    assert await pod.closed() == 4406


async def test_a_grant_whose_answer_was_lost_is_found_in_the_chain(harness: ControlHarness) -> None:
    harness.pod("a")
    harness.store.lose_answer_of = "commits/"
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Grant)).welcome.epoch == 1
    assert harness.chain() == [("grant", 1, 1)]


async def test_a_pod_that_disconnects_while_it_waits_is_not_granted(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    await pod.expect(Wait)
    await harness.leave(pod)
    harness.end("a")
    harness.clock.advance(60)
    await asyncio.sleep(0.05)
    assert harness.chain() == [("grant", 1, 1)]


@pytest.mark.parametrize("slow", ["before", "after"])
async def test_a_slow_store_delays_a_grant_and_grants_once(harness: ControlHarness, slow: str) -> None:
    harness.pod("a")
    harness.store.hold()
    pod = await harness.hello("a", "restore")
    await asyncio.sleep(0.05)
    if slow == "before":
        await pod.close()  # its container restarted meanwhile
        pod = await harness.hello("a", "restore")
    harness.store.release()
    assert (await pod.expect(Grant)).welcome.epoch == 1
    assert harness.chain() == [("grant", 1, 1)]


async def test_a_pod_that_gives_up_waiting_reports_its_outcome(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    await pod.expect(Wait)
    await pod.request(Heartbeat(), Ack)
    await pod.request(Outcome("Timeout", "waited 600 s for pod coder-a"), Ack)
    assert [each.outcome for each in harness.recorder.calls_of("restore_ended")] == ["Timeout"]


async def test_waiting_for_a_connected_predecessor_costs_no_store_call(harness: ControlHarness) -> None:
    await harness.grant("a")
    sidecar, _ = await harness.sidecar("a")
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    await pod.expect(Wait)
    await asyncio.sleep(0.05)
    calls = len(harness.store.calls)
    await asyncio.sleep(0.1)
    assert len(harness.store.calls) == calls
    await harness.leave(sidecar)
    harness.end("a")
    harness.clock.advance(20)
    assert (await pod.granted()).epoch == 2


async def test_a_refused_pod_reports_its_outcome_on_the_same_connection(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod_resolver.pins[AGENT] = (3, "ab" * 32)
    pod = await harness.hello("a", "restore")
    await pod.expect(Refused)
    await pod.request(Outcome("RollbackDetected", "in its own words"), Ack)
    assert await pod.closed() == 1000
    assert [each.message for each in harness.recorder.calls_of("restore_ended")] == ["in its own words"]


def test_a_repeated_refusal_is_retried_less_and_less_often() -> None:
    backoff = Backoff(1.0)
    assert [backoff.next(repeated=False), backoff.next(repeated=True)] == [1.0, 1.5]
    assert [backoff.next(repeated=True) for _ in range(9)][-1] == 8.0
    assert backoff.next(repeated=False) == 1.0


async def test_a_wait_is_repeated(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    first = await pod.expect(Wait)
    harness.clock.advance(10)
    assert await pod.expect(Wait) == first
    assert len(harness.recorder.calls_of("waiting")) == 1
