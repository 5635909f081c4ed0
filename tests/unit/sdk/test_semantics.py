"""What documents, loops, steps and effects promise, one promise a test."""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import savepoint
from savepoint import testing


@pytest.fixture
def life() -> Iterator[testing.Simulation]:
    with testing.Simulation() as simulation:
        yield simulation


class Calls:
    """A function that notes its calls."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.made.append(value)
        return value

    def failing(self, error: Exception) -> Callable[[Any], Any]:
        def call(value: Any) -> Any:
            self.made.append(value)
            raise error

        return call


# -- documents --


def test_a_document_is_a_copy_of_its_default_and_one_object(life: testing.Simulation) -> None:
    agent = life.start()
    default: dict[str, Any] = {"notes": []}
    document = agent.document("notes", default)
    document["notes"].append(1)
    assert default == {"notes": []}
    assert agent.document("notes", {}) is document
    assert document.__class__ is dict


def test_documents_come_back_as_they_were_at_the_safe_point(life: testing.Simulation) -> None:
    agent = life.start()
    notes, raw = agent.document("notes", []), agent.document("raw", bytearray())
    notes.append((1, b"x"))
    raw += b"abc"
    assert agent.checkpoint() == "agent-1"
    notes.append("later")
    life.crash(lose_stage=True)
    agent = life.start()
    assert agent.restored is not None
    assert agent.restored.checkpoint == "agent-1"
    assert agent.document("notes", []) == [(1, b"x")]
    assert agent.document("raw", bytearray(b"default")) == b"abc"


def test_a_document_that_the_program_does_not_ask_for_is_not_lost(life: testing.Simulation) -> None:
    agent = life.start()
    agent.document("old", {"a": 1})
    agent.checkpoint()
    agent = life.start()
    agent.document("new", {})
    agent.checkpoint()
    assert life.start().document("old", {}) == {"a": 1}


def test_a_document_of_another_shape_is_refused(life: testing.Simulation) -> None:
    agent = life.start()
    agent.document("notes", [])
    agent.checkpoint()
    agent = life.start()
    with pytest.raises(savepoint.RestoreFailed, match="saved as a list"):
        agent.document("notes", {})
    assert agent.document("notes", []) == []


def test_large_documents_and_many_of_them_come_back(life: testing.Simulation) -> None:
    agent = life.start()
    for number in range(5):
        agent.document(f"d{number}", {"text": '"' * 300_000 + str(number)})
    agent.checkpoint()
    life.crash(lose_stage=True)
    agent = life.start()
    for number in range(5):
        assert agent.document(f"d{number}", {}) == {"text": '"' * 300_000 + str(number)}


def test_an_unsavable_document_fails_the_checkpoint_and_names_the_place(
    life: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = life.start()
    document = agent.document("notes", {})
    document["owner"] = object()
    with pytest.raises(savepoint.NotEncodable, match=r"notes\.owner"):
        agent.checkpoint()
    life.checkpoint_soon()
    agent.safe_point()  # goes on
    assert "notes.owner" in caplog.text
    document.clear()
    assert agent.checkpoint() == "agent-1"


# -- catching up: turns that run again change documents once --


def test_a_checkpoint_in_the_middle_of_a_turn_is_no_trap(life: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, until: str) -> list[str]:
        notes = agent.document("notes", [])
        for item in agent.loop("loop", "ab"):
            notes.append(item)
            mine = agent.document("mine", {"items": []})["items"]
            mine.append(item)
            agent.checkpoint()
            mine.append("later")
            if item == until:
                raise StopAsyncIteration
        return [*notes, *agent.document("mine", {})["items"]]

    with pytest.raises(StopAsyncIteration):
        program(life.start(), "b")
    life.crash(lose_stage=True)
    assert program(life.start(), "-") == ["a", "b", "a", "later", "b", "later"]


def test_what_the_program_does_before_its_first_loop_is_kept(life: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, until: int) -> dict[str, Any]:
        state = agent.document("state", {"starts": 0, "turns": []})
        state["starts"] += 1
        for outer in agent.loop("outer", range(2)):
            state["turns"].append([outer])
            for inner in agent.loop("inner", range(3)):
                state["turns"][-1].append(inner)
                life.checkpoint_soon()
                if inner == until:
                    raise StopAsyncIteration
        return state

    for until in (1, 2):
        with pytest.raises(StopAsyncIteration):
            program(life.start(), until)
        life.crash(lose_stage=True)
    assert program(life.start(), -1) == {"starts": 3, "turns": [[0, 0, 1, 2], [1, 0, 1, 2]]}


def test_a_loop_left_by_break_is_left_again_without_a_trace(life: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, fails: bool) -> tuple[list[Any], Any]:
        notes, found = agent.document("notes", []), None
        for number in agent.loop("search", range(9)):
            notes.append(number)
            if number == 2:
                found = number
                break
        for item in agent.loop("rest", "ab"):
            notes.append(item)
            if fails:
                life.checkpoint_soon()
        return notes, found

    program(life.start(), True)
    life.crash(lose_stage=True)
    assert program(life.start(), False) == ([0, 1, 2, "a", "b"], 2)


def test_a_program_that_takes_another_way_is_warned_and_goes_on(
    life: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = life.start()
    notes = agent.document("notes", [])
    for _ in agent.loop("loop", [1]):
        notes.append("first")
        agent.checkpoint()
        break
    life.crash(lose_stage=True)
    agent = life.start()  # a newer version, without the checkpoint in the turn
    notes = agent.document("notes", [])
    for _ in agent.loop("loop", [1]):
        notes.append("again")
    assert notes == ["first", "again"]
    assert "did not reach the point where its checkpoint was taken" in caplog.text
    agent.checkpoint()
    assert life.checkpoints[-1].documents["notes"] == '["first","again"]'


# -- handles --


def test_a_handle_is_opened_again_from_its_descriptor(life: testing.Simulation) -> None:
    opened: list[Any] = []

    def reopen(descriptor: Any) -> dict[str, Any]:
        opened.append(descriptor)
        return {"cursor": descriptor["cursor"] if descriptor else 0}

    def describe(cursor: dict[str, Any]) -> dict[str, Any]:
        return {"cursor": cursor["cursor"]}

    life.start().handle("search", reopen, describe)["cursor"] = 7
    agent = life.start()
    agent.handle("search", reopen, describe)["cursor"] = 7
    agent.checkpoint()
    life.crash(lose_stage=True)
    life.start().checkpoint()  # a program that does not ask for it keeps it
    agent = life.start()
    assert agent.handle("search", reopen, describe) == {"cursor": 7}
    assert opened == [None, None, {"cursor": 7}]
    agent.handle("bad", lambda _: 1, lambda _: object())
    with pytest.raises(savepoint.NotEncodable, match="handle 'bad'"):
        agent.checkpoint()


# -- loops --


def run_loop(agent: savepoint.Agent, items: Any, until: Any = None, **options: Any) -> list[Any]:
    """The items whose turns ran; leaves in the turn of ``until`` by an exception."""
    ran = []
    for item in agent.loop("loop", items, **options):
        ran.append(item)
        if item == until:
            raise StopAsyncIteration(ran)
    return ran


def left(agent: savepoint.Agent, items: Any, until: Any) -> list[Any]:
    with pytest.raises(StopAsyncIteration) as caught:
        run_loop(agent, items, until)
    ran: list[Any] = caught.value.args[0]
    return ran


def test_finished_turns_of_the_cut_are_skipped_and_the_rest_runs(life: testing.Simulation) -> None:
    agent = life.start()
    ran = []
    for item in agent.loop("loop", "abcd"):
        ran.append(item)
        if item == "b":
            life.checkpoint_soon()  # taken once this turn is finished
        if item == "d":
            break
    assert ran == ["a", "b", "c", "d"]
    life.crash()
    assert run_loop(life.start(), "abcd") == ["c", "d"]  # c was finished after the cut


def test_leaving_by_an_exception_keeps_the_position(life: testing.Simulation) -> None:
    agent = life.start()
    assert left(agent, "abc", "b") == ["a", "b"]
    assert run_loop(agent, "abc") == ["b", "c"]  # in the same process, too
    assert run_loop(agent, "abc") == ["a", "b", "c"]  # it is finished: this is the next loop of the name


def test_a_finished_loop_collapses_and_is_skipped_without_its_items(life: testing.Simulation) -> None:
    agent = life.start()
    run_loop(agent, range(1000))
    agent.checkpoint()
    life.crash(lose_stage=True)

    def never() -> Iterator[int]:
        raise AssertionError("items of a finished loop are not asked for")
        yield 0

    agent = life.start()
    assert run_loop(agent, never()) == []
    assert run_loop(agent, [7]) == [7]
    assert "1000" not in life.checkpoints[-1].components[1][1][0].decode()


def test_a_repeated_key_is_an_error(life: testing.Simulation) -> None:
    with pytest.raises(savepoint.LoopKeyRepeated, match=r"'loop'.*two items with the key \"a\""):
        run_loop(life.start(), ["a", "b", "a"])


def test_keys_identify_items_whatever_their_order(life: testing.Simulation) -> None:
    agent = life.start()
    items = [{"id": 1}, {"id": 2}, {"id": 3}]
    for item in agent.loop("loop", items, key=lambda it: it["id"]):
        if item["id"] == 2:
            break
    agent.checkpoint()
    life.crash()
    assert run_loop(life.start(), items[::-1], key=lambda it: it["id"]) == [{"id": 3}, {"id": 2}]
    with pytest.raises(savepoint.NotEncodable, match="pass key="):
        run_loop(life.start(), items)


def test_an_endless_loop_goes_on_counting(life: testing.Simulation) -> None:
    agent = life.start()
    for number in agent.loop("turns", itertools.count()):
        if number == 5000:
            life.checkpoint_soon()
        if number == 5001:
            break
    life.crash()
    assert next(iter(life.start().loop("turns", itertools.count()))) == 5001


def test_nested_loops_keep_their_own_positions(life: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, until: tuple[str, int] | None) -> list[tuple[str, int]]:
        ran = []
        for outer in agent.loop("outer", "ab"):
            for inner in agent.loop("inner", range(3)):
                ran.append((outer, inner))
                if (outer, inner) == until:
                    life.checkpoint_soon()
                    raise StopAsyncIteration
        return ran

    with pytest.raises(StopAsyncIteration):
        program(agent := life.start(), ("b", 1))
    agent.safe_point()
    life.crash(lose_stage=True)
    assert program(life.start(), None) == [("b", 1), ("b", 2)]


def test_break_leaves_the_scope(life: testing.Simulation) -> None:
    agent = life.start()
    calls = Calls()
    for _ in agent.loop("loop", "ab"):
        agent.step("inside", calls, 1)
        break
    agent.step("inside", calls, 2)  # another scope, so another step
    assert calls.made == [1, 2]


def test_two_loops_of_one_name_at_once_are_refused(life: testing.Simulation) -> None:
    agent = life.start()
    with pytest.raises(RuntimeError, match="different names"):
        list(zip(agent.loop("loop", "ab"), agent.loop("loop", "ab"), strict=True))


# -- steps --


def test_a_finished_step_is_replayed_after_a_crash_in_place(life: testing.Simulation) -> None:
    calls = Calls()
    assert life.start().step("ask", calls, ("a", b"b")) == ("a", b"b")
    life.crash()
    assert life.start().step("ask", calls, ("a", b"b")) == ("a", b"b")
    assert calls.made == [("a", b"b")]


def test_without_the_stage_only_what_was_committed_counts(life: testing.Simulation) -> None:
    calls = Calls()
    agent = life.start()
    agent.step("first", calls, 1)
    agent.checkpoint()
    agent.step("second", calls, 2)
    life.crash(lose_stage=True)
    agent = life.start()
    agent.step("first", calls, 1)
    agent.step("second", calls, 2)
    assert calls.made == [1, 2, 2]


def test_changed_arguments_are_refused(life: testing.Simulation) -> None:
    life.start().step("ask", Calls(), 1)
    agent = life.start()
    with pytest.raises(savepoint.StepChanged, match=r"'ask'.*agent\.loop"):
        agent.step("ask", Calls(), 2)
    assert agent.step("ask", Calls(), 1) == 1


def test_a_failed_step_is_tried_again_under_its_own_name(life: testing.Simulation) -> None:
    calls = Calls()
    agent = life.start()
    with pytest.raises(ValueError, match="no"):
        agent.step("ask", calls.failing(ValueError("no")), 1)
    agent.step("ask", calls, 1)
    agent.step("ask", calls, 2)
    agent = life.start()
    assert [agent.step("ask", calls, 1), agent.step("ask", calls, 2)] == [1, 2]
    assert calls.made == [1, 1, 2]


def test_steps_inside_a_step_do_not_count_among_its_neighbours(life: testing.Simulation) -> None:
    calls = Calls()

    def program(agent: savepoint.Agent) -> list[Any]:
        inner = agent.step("plan", lambda: agent.step("ask", calls, 1))
        return [inner, agent.step("ask", calls, 2)]

    assert program(life.start()) == [1, 2]
    assert program(life.start()) == [1, 2]
    assert calls.made == [1, 2]


def test_a_step_left_half_way_keeps_what_is_finished_inside(life: testing.Simulation) -> None:
    calls = Calls()

    def plan(agent: savepoint.Agent, fails: bool) -> int:
        agent.step("ask", calls, 1)
        if fails:
            raise ValueError("half way")
        return 3

    with pytest.raises(ValueError, match="half way"):
        (agent := life.start()).step("plan", lambda: plan(agent, True))
    agent = life.start()
    assert agent.step("plan", lambda: plan(agent, False)) == 3
    assert calls.made == [1]


def test_an_unsavable_result_names_its_path(life: testing.Simulation) -> None:
    with pytest.raises(savepoint.NotEncodable, match=r"result of step 'ask'\.answers\[1\]"):
        life.start().step("ask", lambda: {"answers": [1, object()]})


def test_steps_of_finished_turns_are_forgotten(life: testing.Simulation) -> None:
    agent = life.start()
    for number in agent.loop("loop", range(100)):
        agent.step("ask", Calls(), f"text {number}")
    agent.checkpoint()
    assert "text" not in life.checkpoints[-1].components[1][1][0].decode()


def test_a_repeated_step_across_safe_points_is_warned_of(
    life: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = life.start()
    agent.step("a", Calls(), 1)
    agent.step("a", Calls(), 2)
    assert caplog.text == ""
    agent.safe_point()
    agent.step("a", Calls(), 3)
    agent.safe_point()
    agent.step("a", Calls(), 4)
    assert caplog.text.count("put what repeats into agent.loop()") == 1


def test_scopes_give_names_of_their_own(life: testing.Simulation) -> None:
    calls = Calls()

    def program(agent: savepoint.Agent) -> None:
        for reviewer in ("kind", "strict"):
            with agent.scope(reviewer):
                agent.step("review", calls, reviewer)

    program(life.start())
    life.checkpoint_soon()
    agent = life.start()
    program(agent)
    agent.checkpoint()
    life.crash(lose_stage=True)
    program(life.start())
    assert calls.made == ["kind", "strict"]


# -- effects --


def send(agent: savepoint.Agent, sent: list[str], **options: Any) -> Any:
    def body(op: savepoint.Operation) -> int:
        sent.append(op.id)
        return len(sent)

    return agent.effect("mail", body, **options)


def test_a_confirmed_effect_is_skipped_and_gives_its_result(life: testing.Simulation) -> None:
    sent: list[str] = []
    assert send(life.start(), sent) == 1
    life.crash()
    assert send(life.start(), sent) == 1
    assert len(sent) == 1


def test_effects_are_told_apart_by_scope_name_key_and_order(life: testing.Simulation) -> None:
    sent: list[str] = []
    agent = life.start()
    for _ in agent.loop("loop", "ab"):
        send(agent, sent)
        send(agent, sent)
        send(agent, sent, key="k")
        send(agent, sent, key="k")  # the same effect
    assert len(sent) == len(set(sent)) == 6


def uncertain(life: testing.Simulation, sent: list[str]) -> savepoint.Agent:
    """An agent that comes back after it died while it sent."""

    def dies(op: savepoint.Operation) -> None:
        sent.append(op.id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        life.start().effect("mail", dies, risk="high")
    life.crash()
    return life.start()


def test_an_uncertain_effect_is_handed_back(life: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(life, sent)
    (found,) = agent.uncertain()
    assert (found.id, found.name, found.risk) == (sent[0], "mail", "high")
    with pytest.raises(savepoint.EffectUncertain, match="never confirmed") as caught:
        send(agent, sent)
    assert caught.value.effect_id == sent[0]
    assert len(sent) == 1


def test_an_uncertain_effect_can_be_confirmed(life: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(life, sent)
    agent.uncertain()[0].confirm({"status": "seen"})
    assert agent.uncertain() == []
    life.crash()
    assert send(life.start(), sent) == {"status": "seen"}
    assert len(sent) == 1


def test_an_uncertain_effect_can_be_sent_again_under_its_id(life: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(life, sent)
    agent.uncertain()[0].retry()
    life.crash()
    assert send(life.start(), sent) == 2
    assert sent[0] == sent[1]


@pytest.mark.parametrize(("policy", "result", "times"), [("retry", 2, 2), ("skip", None, 1)])
def test_the_caller_may_decide_beforehand(life: testing.Simulation, policy: Any, result: Any, times: int) -> None:
    sent: list[str] = []
    agent = uncertain(life, sent)
    assert send(agent, sent, on_uncertain=policy) == result
    assert send(life.start(), sent) == result
    assert len(sent) == times
    assert len(set(sent)) == 1


def test_a_body_may_say_that_nothing_was_sent(life: testing.Simulation) -> None:
    def refused(op: savepoint.Operation) -> None:
        op.not_sent()
        raise ConnectionRefusedError

    sent: list[str] = []
    agent = life.start()
    with pytest.raises(ConnectionRefusedError):
        agent.effect("mail", refused)
    assert agent.uncertain() == []
    assert send(agent, sent) == 1


def test_a_with_block_runs_again_under_the_same_id(life: testing.Simulation) -> None:
    seen = []
    for fails in (True, False, False):
        agent = life.start()
        try:
            with agent.effect("mail", key=7) as op:
                seen.append((op.id, op.sent_before, op.confirmed, op.result))
                if fails:
                    raise ValueError
                op.confirm("done")
        except ValueError:
            assert len(agent.uncertain()) == 1
    identity = seen[0][0]
    assert seen == [
        (identity, False, False, None),
        (identity, True, False, None),
        (identity, True, True, "done"),
    ]


def test_a_fenced_agent_sends_nothing(life: testing.Simulation) -> None:
    sent: list[str] = []
    agent = life.start()
    life.fence("another pod may run")
    with pytest.raises(savepoint.Superseded, match="another pod may run"):
        send(agent, sent)
    life.unfence()
    assert send(agent, sent) == 1


def test_uncertain_effects_travel_with_the_checkpoint(life: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(life, sent)
    agent.checkpoint()
    assert life.checkpoints[-1].uncertain == tuple(sent)
    life.crash(lose_stage=True)
    assert [item.id for item in life.start().uncertain()] == sent


def test_an_unsavable_result_of_an_effect_is_said_and_the_effect_stays_confirmed(life: testing.Simulation) -> None:
    sent: list[str] = []

    def body(op: savepoint.Operation) -> object:
        sent.append(op.id)
        return object()

    agent = life.start()
    with pytest.raises(savepoint.NotEncodable):
        agent.effect("mail", body)
    assert send(life.start(), sent) is None
    assert len(sent) == 1


# -- the end --


def test_the_next_run_starts_fresh_with_new_ids(life: testing.Simulation) -> None:
    sent: list[str] = []
    for _ in range(2):
        agent = life.start()
        assert agent.restored is None
        notes = agent.document("notes", [])
        notes.append(1)
        assert notes == [1]
        send(agent, sent)
        agent.finish()
        with pytest.raises(savepoint.Unavailable, match="finished"):
            agent.safe_point()
    assert len(set(sent)) == 2


def test_no_checkpoint_inside_critical(life: testing.Simulation) -> None:
    agent = life.start()
    with agent.critical():
        life.checkpoint_soon()
        agent.safe_point()
        assert life.checkpoints == []
        with pytest.raises(savepoint.NotAtSafePoint):
            agent.checkpoint()
    agent.safe_point()
    assert len(life.checkpoints) == 1


def test_the_position_is_told_in_words(life: testing.Simulation) -> None:
    agent = life.start()
    for number in agent.loop("docs", [1, 2, 3]):
        if number == 2:
            life.checkpoint_soon()
            agent.safe_point()
            break
    assert life.checkpoints[-1].step == "docs 2 of 3"


def test_unmanaged_works_in_memory_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SAVEPOINT_SOCKET", raising=False)
    monkeypatch.delenv("SAVEPOINT_REQUIRED", raising=False)
    with caplog.at_level(logging.INFO):
        agent = savepoint.connect()
        agent.document("notes", []).append(1)
        calls = Calls()
        sent: list[str] = []
        for item in agent.loop("loop", "ab"):
            agent.step("ask", calls, item)
            send(agent, sent)
        agent.tensors("weights", lambda: {"w": b"x"})
        agent.safe_point()
        assert (agent.checkpoint(), agent.finish(), agent.managed, agent.restored) == ("", "", False, None)
    assert calls.made == ["a", "b"]
    assert len(caplog.records) == 1


def test_required_and_unmanaged_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAVEPOINT_SOCKET", raising=False)
    monkeypatch.setenv("SAVEPOINT_REQUIRED", "1")
    with pytest.raises(savepoint.Unavailable, match="SAVEPOINT_REQUIRED"):
        savepoint.connect()
