"""The two protocols share one codec; these tests pin what each of them tolerates, refuses and says."""

import json
from typing import Any, get_args

import pytest
from savepoint.contract import agent_protocol, control_protocol
from savepoint.contract.codec import ProtocolError
from savepoint.contract.vocabulary import ComponentKind

OUTCOME = {"v": 1, "type": "outcome", "outcome": "Fresh"}


def agent_error(cls: Any, raw: object) -> str:
    with pytest.raises(ProtocolError) as caught:
        cls.from_wire(raw)
    return str(caught.value)


def control_error(message: dict[str, Any]) -> str:
    with pytest.raises(ProtocolError) as caught:
        control_protocol.decode(json.dumps(message))
    return str(caught.value)


def test_null_is_an_absent_field_for_an_agent_and_a_wrong_type_for_a_pod() -> None:
    assert agent_protocol.Problem.from_wire({"reason": None}) == agent_protocol.Problem()
    assert agent_error(agent_protocol.Resumed, {"session": None}) == "Resumed: field 'session' is missing"
    assert control_error({**OUTCOME, "message": None}) == "outcome.message: expected str"


def test_integers_of_an_agent_are_not_negative_and_all_fit_in_64_bits() -> None:
    resumed = {"session": "s", "transaction": "t"}
    text = "Resumed.pauseMilliseconds: a int of this value does not belong there"
    for number in (-1, 1 << 63):
        assert agent_error(agent_protocol.Resumed, {**resumed, "pauseMilliseconds": number}) == text
    message = control_protocol.decode(json.dumps({**OUTCOME, "milliseconds": -5}))
    assert message == control_protocol.Outcome("Fresh", milliseconds=-5)
    for number in (1 << 63, -(1 << 63), True):
        assert control_error({**OUTCOME, "milliseconds": number}) == "outcome.milliseconds: expected int"


def test_errors_name_the_field() -> None:
    entry = {"name": "notes", "encoding": "pickle", "size": 1, "inline": "1"}
    component = {"name": "documents", "kind": "Memory", "entries": [entry]}
    flush = {"session": "s", "components": [component]}
    assert agent_error(agent_protocol.Flush, flush) == "Entry.encoding: a str of this value does not belong there"
    assert agent_error(agent_protocol.Flush, {**flush, "components": [3]}) == "Component must be an object"
    hello = {"v": 1, "type": "hello", "role": "sidecar", "protocol": 1, "version": "1"}
    assert control_error({**hello, "attempts": [{"attempt": "a"}]}) == "hello.attempts[]: field 'stage' is missing"
    assert control_error({**hello, "attempts": [3]}) == "hello.attempts[]: expected AttemptState"
    urls = {"v": 1, "type": "urls", "request": "r", "put": {"packs/1": 3}}
    assert control_error(urls) == "urls.put.packs/1: expected str"


def test_both_protocols_ignore_unknown_fields() -> None:
    assert agent_protocol.Problem.from_wire({"colour": 1}) == agent_protocol.Problem()
    assert control_protocol.decode(json.dumps({**OUTCOME, "colour": 1})) == control_protocol.Outcome("Fresh")


def test_the_literals_of_component_kinds_are_those_of_the_vocabulary_without_files() -> None:
    assert set(get_args(agent_protocol.Kind)) == agent_protocol.KINDS == set(ComponentKind) - {"Files"}
