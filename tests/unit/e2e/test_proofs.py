"""The proofs must be able to fail: each is fed what it should accept and what it should not."""

from typing import Any

from e2e import proofs
from e2e.proofs import Reference


def report(event: str, turn: int, digest: str = "d", **more: Any) -> dict[str, Any]:
    return {"event": event, "turn": turn, "digest": digest, **more}


def test_state_agrees_accepts_equal_digests_and_refuses_one_wrong_one() -> None:
    reference = Reference(("a", "b", "c"))
    good = [report("start", 0, "a"), report("turn", 1, "b"), report("start", 1, "b"), report("turn", 2, "c")]
    assert proofs.state_agrees(good, reference).holds
    assert not proofs.state_agrees([*good, report("start", 1, "c")], reference).holds


def test_turns_lost_counts_what_a_restart_forgot() -> None:
    reports = [report("start", 0), report("turn", 5), report("start", 5), report("turn", 9), report("start", 7)]
    assert proofs.turns_lost(reports) == [0, 2]


def test_calls_repeated_counts_only_answers_delivered_twice() -> None:
    assert proofs.calls_repeated({"a": [1, 1], "b": [2, 1], "c": [1, 0]}) == 0
    assert proofs.calls_repeated({"a": [2, 2], "b": [3, 3]}) == 3


def test_effects_repeated_names_the_ids() -> None:
    assert proofs.effects_repeated({"x": {"count": 1}, "y": {"count": 2}}) == ["y"]


def coder(event: str, turn: int, **more: Any) -> dict[str, Any]:
    facts = {"head": f"h{turn}", "rows": turn, "tree": f"t{turn}", "integrity": "ok", "fsck": "ok", "hook": "yes"}
    return {"event": event, "turn": turn, "links": "src/1,/nowhere/at/all", **facts, **more}


def test_coder_goes_on_refuses_another_head_and_a_broken_database() -> None:
    good = [coder("start", 0), coder("turn", 1), coder("start", 1)]
    assert all(proof.holds for proof in proofs.coder_goes_on(good))
    assert not all(proof.holds for proof in proofs.coder_goes_on([*good, coder("start", 1, head="other")]))
    assert not all(proof.holds for proof in proofs.coder_goes_on([*good, coder("turn", 2, integrity="malformed")]))


def test_table_marks_failures() -> None:
    text = proofs.table([proofs.Proof("a", "1", "0", False), proofs.Proof("b", "0", "0", True)])
    assert [line.split()[0] for line in text.splitlines()] == ["FAIL", "ok"]


def test_reference_depends_on_every_turn() -> None:
    short = Reference.run(4, mebibytes=1, stride=1, documents=10)
    assert len(set(short.digests)) == 5
    assert short == Reference.run(4, mebibytes=1, stride=1, documents=10)
    assert short != Reference.run(4, mebibytes=1, stride=2, documents=10)


def test_a_time_over_its_goal_is_shown_and_fails_nothing() -> None:
    slow, wrong = proofs.Proof("a", "12", "10", False, figure=True), proofs.Proof("b", "1", "0", False)
    assert (slow.mark, slow.failed, wrong.mark, wrong.failed) == ("over", False, "FAIL", True)


def test_position_and_conversation_must_be_the_uninterrupted_runs() -> None:
    reference = Reference(("a", "b"), ("c0", "c1"), (("d", "q"),))
    good = report("turn", 1, "b", document="d", question="q", conversation="c1")
    assert proofs.position_agrees([good], reference).holds
    assert proofs.conversation_grows([good], reference).holds
    assert not proofs.position_agrees([{**good, "question": "other"}], reference).holds
    assert not proofs.conversation_grows([{**good, "conversation": "c0"}], reference).holds
    assert not proofs.position_agrees([], reference).holds


def test_bytes_changed_counts_each_range_once() -> None:
    turns = [report("turn", turn, time=float(turn)) for turn in range(1, 8)]
    assert proofs.bytes_changed(turns, 0.0, 7.0, mebibytes=100, stride=3) == 3 << 20
    assert proofs.bytes_changed(turns, 6.0, 7.0, mebibytes=100, stride=3) == 1 << 20
