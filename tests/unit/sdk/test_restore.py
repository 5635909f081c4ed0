"""Restored values are checked: invalid ones are refused, and for a newer format the error names the remedy."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import savepoint
from hypothesis import given
from hypothesis import strategies as st
from savepoint.contract.agent_protocol import Component, Entry
from savepoint.sdk.journal import FileJournal, NoJournal
from savepoint.sdk.stage import Stage
from savepoint.sdk.state import State


def restore(name: str, value: Any) -> State:
    state = State(NoJournal(), None)
    text = json.dumps(value)
    state.restore([Component(name, "Execution", (Entry(name, "json", len(text), inline=text),))])
    return state


@pytest.mark.parametrize("name", ["execution", "effects"])
def test_a_newer_version_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(savepoint.SavepointError, match="install a newer savepoint-agents") as caught:
        restore(name, {"version": 2})
    assert caught.value.reason == "SchemaTooNew"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execution", []), ("execution", {}), ("execution", {"version": 1, "journal": "x"}),
        ("execution", {"version": 1, "scopes": []}), ("execution", {"version": 1, "scopes": {"steps": {"a": 1}}}),
        ("execution", {"version": 1, "scopes": {"loops": {"a#0": {"ranges": [1]}}}}),
        ("execution", {"version": 1, "at": {"scope": 1}}), ("effects", {"version": 1, "effects": {"a": {}}}),
        ("effects", {"version": 1, "effects": []}), ("effects", {"version": 1, "effects": {"a": {"state": "Lost"}}}),
    ],
)  # fmt: skip
def test_invalid_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(savepoint.RestoreFailed):
        restore(name, value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["steps", "loops", "below", "at", "scope", "loop", "effects", "state", "ranges", "a"]), inner
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(["execution", "effects"]), plain, plain)
def test_invalid_values_raise_nothing_but_our_errors(name: str, scopes: Any, at: Any) -> None:
    with contextlib.suppress(savepoint.SavepointError):
        restore(name, {"version": 1, "scopes": scopes, "at": at, "effects": scopes})


def test_a_restored_file_of_another_length_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "d").write_text("[1]")
    state = State(NoJournal(), stage)
    with pytest.raises(savepoint.RestoreFailed, match="not 4 bytes long"):
        state.restore([Component("documents", "Memory", (Entry("d", "json", 4, path="restored/d"),))])


def test_a_damaged_journal_record_is_reported(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    list(journal.replay(0))
    journal.append({"t": "step"}, durable=False)
    journal.close()
    with pytest.raises(savepoint.RestoreFailed, match="journal"):
        State(FileJournal(tmp_path), None).restore([])


def test_records_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    list(journal.replay(0))
    journal.append({"t": "levitate"}, durable=False)
    journal.append({"t": "confirmed", "id": "unknown", "r": "1"}, durable=False)
    journal.close()
    assert State(FileJournal(tmp_path), None).restore([]) == 0
