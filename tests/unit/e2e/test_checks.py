"""Every check must be able to fail: each gets input that it must accept and input that it must reject."""

from typing import Any

from e2e.checks import checks
from e2e.checks.checks import Reference


def report(event: str, turn: int, digest: str = "d", **more: Any) -> dict[str, Any]:
    return {"event": event, "turn": turn, "digest": digest, **more}


def test_state_agrees_accepts_equal_digests_and_rejects_a_wrong_one() -> None:
    reference = Reference(("a", "b", "c"))
    good = [report("start", 0, "a"), report("turn", 1, "b"), report("start", 1, "b"), report("turn", 2, "c")]
    assert checks.state_agrees(good, reference).holds
    assert not checks.state_agrees([*good, report("start", 1, "c")], reference).holds


def test_turns_lost_counts_reported_turns_that_a_restart_lacks() -> None:
    reports = [report("start", 0), report("turn", 5), report("start", 5), report("turn", 9), report("start", 7)]
    assert checks.turns_lost(reports) == [0, 2]


def test_calls_repeated_counts_only_calls_completed_more_than_once() -> None:
    assert checks.calls_repeated({"a": [1, 1], "b": [2, 1], "c": [1, 0]}) == 0
    assert checks.calls_repeated({"a": [2, 2], "b": [3, 3]}) == 3


REPLIES = Reference(("d",) * 4, replies=("one", "two", "three"))
TURNS = [report("start", 0), report("turn", 1), report("turn", 2)]


def booked(*replies: str, **counts: int) -> dict[str, dict[str, Any]]:
    """Return a ledger with these replies, each under its own id and counted once unless ``counts`` differs."""
    return {f"id-{reply}": {"body": reply, "count": counts.get(reply, 1)} for reply in replies}


def test_effects_must_be_counted_once_and_be_complete() -> None:
    assert checks.effects_counted(TURNS, booked("one", "two"), TURNS, REPLIES).holds
    for wrong in (
        {},
        booked("one"),
        booked("one", "two", two=2),
        booked("one", "two", "another"),
        booked("one", "two") | {"again": {"body": "two", "count": 1}},
    ):
        assert not checks.effects_counted(TURNS, wrong, TURNS, REPLIES).holds, wrong
    assert not checks.effects_counted([], {}, [], REPLIES).holds


def test_effects_in_flight_or_booked_between_the_reports_may_be_in_the_ledger() -> None:
    assert checks.effects_counted(TURNS[:2], booked("one", "two"), TURNS[:2], REPLIES).holds
    assert not checks.effects_counted(TURNS[:2], booked("one", "two", "three"), TURNS[:2], REPLIES).holds
    assert checks.effects_counted(TURNS[:2], booked("one", "two", "three"), TURNS, REPLIES).holds
    assert not checks.effects_counted(TURNS[:2], booked("one", "two", two=2), TURNS, REPLIES).holds


def test_effects_of_unreported_turns_are_not_required() -> None:
    later = [report("start", 1), report("turn", 2)]
    assert checks.effects_counted(later, booked("two"), later, REPLIES).holds
    assert not checks.effects_counted(later, booked("one"), later, REPLIES).holds


def test_an_effect_may_be_booked_twice_only_if_it_is_listed_as_uncertain() -> None:
    listed = [*TURNS, report("uncertain", 1, effect="id-two", arrived=True)]
    assert checks.effects_counted(listed, booked("one", "two", two=2), listed, REPLIES).holds
    assert not checks.effects_counted(listed, booked("one", "two", one=2), listed, REPLIES).holds
    assert not checks.effects_counted(listed, booked("one"), listed, REPLIES).holds


def test_at_most_one_effect_per_kill_may_be_uncertain() -> None:
    first, again, moved = (report("start", 1, pod=pod) for pod in ("one", "one", "two"))
    lost = [report("uncertain", 1, effect="a", arrived=True), report("uncertain", 1, effect="b", arrived=False)]
    line = checks.effects_uncertain([first, again, lost[0], again, lost[1]])
    assert line.holds and line.found == "2, 1"
    assert checks.effects_uncertain([first, again, moved]).holds
    assert not checks.effects_uncertain([first, again, *lost]).holds
    assert not checks.effects_uncertain([first, moved, lost[0]]).holds


def coder(event: str, turn: int, pod: str = "one", **more: Any) -> dict[str, Any]:
    workspace = {"head": f"h{turn}", "rows": turn, "tree": f"t{turn}", "integrity": "ok", "fsck": "ok", "hook": "yes"}
    log = {"logLines": 1 + 2 * turn, "logDigest": f"l{turn}"}
    return {"event": event, "turn": turn, "pod": pod, "links": "src/1,/nowhere/at/all", **workspace, **log, **more}


def test_coder_continues_accepts_the_same_workspace_and_rejects_any_other() -> None:
    good = [coder("start", 0), coder("turn", 1), coder("start", 1, "two"), coder("turn", 2, "two")]
    assert all(check.holds for check in checks.coder_continues(good))
    for wrong in (
        coder("start", 2, "three", head="other"),
        coder("start", 2, "three", logDigest="other"),
        coder("start", 2, "three", logLines=4),
        coder("start", 7, "three"),
        coder("turn", 3, integrity="malformed"),
        coder("turn", 3, logLines=5),
        coder("turn", 3, links="src/1,"),
    ):
        assert not all(check.holds for check in checks.coder_continues([*good, wrong])), wrong


CRASHED = [coder("start", 0), coder("turn", 1), coder("turn", 2)]


def test_a_coder_killed_in_place_may_have_more_than_it_reported() -> None:
    for kept in (
        coder("start", 2),
        coder("start", 2, head="other", tree="other"),
        coder("start", 2, head="other", logLines=6, logDigest="other"),
        coder("start", 3, logLines=6),
        coder("start", 3),
    ):
        assert all(check.holds for check in checks.coder_continues([*CRASHED, kept])), kept


def test_a_coder_killed_in_place_must_not_lose_work_or_skip_turns() -> None:
    for wrong in (
        coder("start", 1),
        coder("start", 4),
        coder("start", 3, rows=2),
        coder("start", 2, logLines=4),
        coder("start", 2, logDigest="other"),
        coder("start", 2, fsck="bad"),
        coder("start", 3, "two"),
    ):
        assert not all(check.holds for check in checks.coder_continues([*CRASHED, wrong])), wrong


def test_the_table_marks_failures() -> None:
    text = checks.table([checks.Check("a", "1", "0", False), checks.Check("b", "0", "0", True)])
    assert [line.split()[0] for line in text.splitlines()] == ["FAIL", "ok"]


def test_the_reference_depends_on_every_turn() -> None:
    short = Reference.run(4, mebibytes=1, stride=1, documents=10)
    assert len(set(short.digests)) == 5
    assert short == Reference.run(4, mebibytes=1, stride=1, documents=10)
    assert short != Reference.run(4, mebibytes=1, stride=2, documents=10)


def test_a_figure_over_its_goal_is_not_a_failure() -> None:
    slow, wrong = checks.Check("a", "12", "10", False, figure=True), checks.Check("b", "1", "0", False)
    assert (slow.mark, slow.failed, wrong.mark, wrong.failed) == ("over", False, "FAIL", True)


def test_the_summary_counts_figures_over_their_goals() -> None:
    good, slow = checks.Check("a", "0", "0", True), checks.Check("b", "12", "10", False, figure=True)
    assert checks.summary([good, slow]).startswith("1 of 1 checks hold; 1 of 1 figures over their goals")
    wrong = checks.Check("c", "1", "0", False)
    assert checks.summary([good, wrong]) == "1 of 2 checks hold, 1 FAIL; 0 of 0 figures over their goals"


def test_position_and_conversation_must_equal_those_of_an_uninterrupted_run() -> None:
    reference = Reference(("a", "b"), ("c0", "c1"), (("d", "q"),))
    good = report("turn", 1, "b", document="d", question="q", conversation="c1")
    assert checks.position_agrees([good], reference).holds
    assert checks.conversation_grows([good], reference).holds
    assert not checks.position_agrees([{**good, "question": "other"}], reference).holds
    assert not checks.conversation_grows([{**good, "conversation": "c0"}], reference).holds
    assert not checks.position_agrees([], reference).holds


def test_bytes_changed_counts_each_range_once() -> None:
    turns = [report("turn", turn, time=float(turn)) for turn in range(1, 8)]
    assert checks.bytes_changed(turns, 0.0, 7.0, mebibytes=100, stride=3) == 3 << 20
    assert checks.bytes_changed(turns, 6.0, 7.0, mebibytes=100, stride=3) == 1 << 20
