"""The rules for granting a pod the next epoch (docs/lifecycle: who may write)."""

import pytest
from savepoint.contract.control_protocol import Wait
from savepoint_operator.model.views import AgentRef, Contact, NodeState, PodState, PredecessorState
from savepoint_operator.rules.takeover import (
    RECONNECT_SECONDS,
    TAKEOVER_SECONDS,
    Decision,
    Granted,
    Holder,
    Keep,
    may_grant,
)

AGENT = AgentRef("demo", "coder")
LEADER_SINCE = 100.0
HOLDER = Holder(epoch=3, pod_uid="old", node="n1", ended=False)


def decide(
    pod: PodState,
    node: NodeState = NodeState.READY,
    contact: Contact | None = None,
    *,
    now: float = LEADER_SINCE + 1000,
    holder: Holder | None = HOLDER,
    pod_uid: str = "new",
) -> Decision:
    return may_grant(
        AGENT,
        holder,
        pod_uid,
        predecessor=PredecessorState(pod, node),
        contact=contact or Contact(),
        leader_since=LEADER_SINCE,
        now=now,
    )


def test_the_first_pod_of_an_agent_is_granted() -> None:
    assert decide(PodState.RUNNING, holder=None) == Granted()


def test_the_holder_keeps_its_epoch() -> None:
    assert decide(PodState.RUNNING, pod_uid="old") == Keep()


def test_the_holder_of_an_ended_epoch_gets_the_next() -> None:
    assert decide(PodState.RUNNING, pod_uid="old", holder=Holder(3, "old", "n1", ended=True)) == Granted()


def test_an_ended_epoch_is_not_a_release_while_its_pod_runs() -> None:
    assert isinstance(decide(PodState.RUNNING, holder=Holder(3, "old", "n1", ended=True)), Wait)


def test_an_ended_epoch_does_not_delay_once_its_pod_has_ended() -> None:
    ended, at_once = Holder(3, "old", "n1", ended=True), LEADER_SINCE
    assert decide(PodState.TERMINAL, holder=ended, now=at_once) == Granted()
    assert isinstance(decide(PodState.TERMINAL, holder=ended, now=at_once, contact=Contact(connected=True)), Wait)
    assert isinstance(decide(PodState.GONE, NodeState.LOST, holder=ended, now=at_once), Wait)


def test_a_release_is_enough_even_while_connected() -> None:
    assert decide(PodState.RUNNING, contact=Contact(connected=True, released=True)) == Granted()


def test_a_running_pod_on_a_ready_node_blocks_its_successor_however_silent() -> None:
    answer = decide(PodState.RUNNING, contact=Contact(closed_at=LEADER_SINCE))
    assert isinstance(answer, Wait)
    assert answer.reason == "PredecessorRunning"
    assert "Recreate" in answer.message


def test_the_message_names_pod_node_and_epoch() -> None:
    answer = decide(PodState.RUNNING, contact=Contact(connected=True, pod_name="coder-7f9"))
    assert isinstance(answer, Wait)
    assert all(word in answer.message for word in ("coder-7f9", "n1", "epoch 3", "demo/coder"))


@pytest.mark.parametrize("node", list(NodeState))
@pytest.mark.parametrize("contact", [Contact(), Contact(connected=True, released=True)])
def test_a_grant_says_that_the_run_of_the_predecessor_has_ended(node: NodeState, contact: Contact) -> None:
    ended = PredecessorState(PodState.TERMINAL, node, run_ended=True)
    now = LEADER_SINCE + 1000
    answer = may_grant(AGENT, HOLDER, "new", predecessor=ended, contact=contact, leader_since=LEADER_SINCE, now=now)
    assert answer == Granted(run_ended=True)


@pytest.mark.parametrize("pod", [PodState.TERMINAL, PodState.GONE])
@pytest.mark.parametrize(("silent", "granted"), [(RECONNECT_SECONDS - 0.1, False), (RECONNECT_SECONDS, True)])
def test_an_ended_pod_on_a_ready_node_is_succeeded_after_a_short_silence(
    pod: PodState, silent: float, granted: bool
) -> None:
    answer = decide(pod, contact=Contact(closed_at=500.0), now=500.0 + silent)
    assert (answer == Granted()) is granted


def test_an_ended_pod_that_is_still_connected_blocks_its_successor() -> None:
    assert isinstance(decide(PodState.TERMINAL, contact=Contact(connected=True)), Wait)


@pytest.mark.parametrize("pod", list(PodState))
@pytest.mark.parametrize(("silent", "granted"), [(TAKEOVER_SECONDS - 0.1, False), (TAKEOVER_SECONDS, True)])
def test_on_a_lost_node_only_a_long_silence_counts(pod: PodState, silent: float, granted: bool) -> None:
    answer = decide(pod, NodeState.LOST, Contact(closed_at=500.0), now=500.0 + silent)
    assert (answer == Granted()) is granted


def test_a_connected_pod_on_a_lost_node_blocks_its_successor() -> None:
    answer = decide(PodState.RUNNING, NodeState.LOST, Contact(connected=True))
    assert isinstance(answer, Wait)
    assert "lost" in answer.message


@pytest.mark.parametrize("closed_at", [None, LEADER_SINCE - 50])
def test_silence_is_counted_from_the_change_of_leader(closed_at: float | None) -> None:
    contact = Contact(closed_at=closed_at)
    early, late = LEADER_SINCE + TAKEOVER_SECONDS - 1, LEADER_SINCE + TAKEOVER_SECONDS
    assert isinstance(decide(PodState.GONE, NodeState.LOST, contact, now=early), Wait)
    assert decide(PodState.GONE, NodeState.LOST, contact, now=late) == Granted()
