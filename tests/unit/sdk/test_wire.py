"""Messages survive the wire, are spelled as in docs/agent-protocol.md, and invalid ones are refused."""

import contextlib
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.contract import agent_protocol as wire

ENTRY = wire.Entry("notes", "json", 2, inline="{}")
COMPONENT = wire.Component("documents", "Memory", (ENTRY, wire.Entry("w", "tensor", 4, path="agent/w", meta={"a": 1})))
MESSAGES: list[Any] = [
    ENTRY,
    COMPONENT,
    wire.Connect(1, "i", "python", "3", {"numpy": "2"}, "x86_64", True),
    wire.Connected("s", "coder", "team", 3, 1, wire.Restored("coder-1", 1, 5, "t"), (COMPONENT,), ("reattach",)),
    wire.Connected("s", "coder", "", 3, 1),
    wire.Flush("s", "t", (COMPONENT,), wire.Execution("docs 1 of 2", ("a",), ("b",), "detail")),
    wire.Failed("s", "t", "StageFull", "full"),
    wire.Resumed("s", "t", 38),
    wire.CheckpointRequest("s", "r", "because"),
    wire.Problem("SessionInUse", "taken"),
]
ORDERS: list[Any] = [
    wire.Prepare("t"),
    wire.Quiesce("t", 10, 2.5, "Interval"),
    wire.Stopping("t", 25),
    wire.Cancelled("t", "QuiesceTimeout", "late"),
    wire.Result("t", "Ready", "r", "coder-1"),
    wire.Result("t", "Failed", None, "", "StageFull", "full"),
    wire.Fenced("why"),
    wire.Unfenced(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message: Any) -> None:
    assert type(message).from_wire(json.loads(json.dumps(message.to_wire()))) == message


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.TYPE)
def test_orders_survive_the_wire(order: Any) -> None:
    assert wire.order_from_wire(json.loads(json.dumps(order.to_wire()))) == order


def test_every_order_is_tested() -> None:
    assert {type(order) for order in ORDERS} == set(get_args(wire.Order))


def test_the_spelling_is_that_of_the_page() -> None:
    assert wire.Quiesce("t", 10, 5, "Drain").to_wire() == {
        "type": "quiesce", "transaction": "t", "timeoutSeconds": 10, "holdSeconds": 5, "trigger": "Drain",
    }  # fmt: skip
    assert wire.Resumed("s", "t", 3).to_wire() == {"session": "s", "transaction": "t", "pauseMilliseconds": 3}
    assert ENTRY.to_wire() == {"name": "notes", "encoding": "json", "meta": {}, "size": 2, "inline": "{}"}
    assert wire.Connect(1, "i").to_wire().keys() == {
        "protocol", "pid", "instance", "sdk", "schemaVersion", "dependencies", "architecture", "reattach",
    }  # fmt: skip
    assert wire.Result("t", "Ready").to_wire()["request"] is None


def test_unknown_fields_and_orders_are_ignored() -> None:
    assert wire.order_from_wire({}) is None
    assert wire.order_from_wire({"type": "levitate"}) is None
    assert wire.Problem.from_wire({"reason": "A", "colour": 1}) == wire.Problem("A", "")


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (wire.Connect, {"pid": "1"}), (wire.Connect, {"pid": True}), (wire.Connect, {"pid": -1}),
        (wire.Connect, {"instance": None}), (wire.Connect, {"dependencies": {"a": 1}}), (wire.Connect, {"reattach": 1}),
        (wire.Entry, {"encoding": "pickle"}), (wire.Entry, {"path": "x"}), (wire.Entry, {"inline": None}),
        (wire.Entry, {"encoding": "bytes"}), (wire.Entry, {"inline": None, "path": "../x"}), (wire.Entry, {"meta": []}),
        (wire.Component, {"kind": "Files"}), (wire.Component, {"entries": [ENTRY.to_wire()] * 2}),
        (wire.Component, {"entries": {}}), (wire.Flush, {"components": [COMPONENT.to_wire()] * 2}),
        (wire.Flush, {"execution": {"open": [1]}}), (wire.Quiesce, {"timeoutSeconds": "10"}),
    ],
)  # fmt: skip
def test_messages_with_wrong_fields_are_refused(cls: Any, change: dict[str, Any]) -> None:
    examples = {type(message): message.to_wire() for message in reversed(MESSAGES + ORDERS)}
    with pytest.raises(wire.ProtocolError):
        cls.from_wire({**examples[cls], **change})
    not_objects: tuple[Any, ...] = (None, [], "x", 3)
    for raw in not_objects:
        with pytest.raises(wire.ProtocolError):
            cls.from_wire(raw)


@pytest.mark.parametrize("path", ["", ".", "/x", "../x", "a/../b", "a//b", "./a", "a/", "a\0b", ".."])
def test_paths_that_leave_the_stage_are_refused(path: str) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.stage_path(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(MESSAGES + ORDERS), st.data())
def test_invalid_messages_raise_nothing_but_a_protocol_error(message: Any, data: st.DataObject) -> None:
    raw = message.to_wire()
    for name in list(raw):
        if data.draw(st.booleans()):
            raw[name] = data.draw(json_values)
    with contextlib.suppress(wire.ProtocolError):
        type(message).from_wire(raw)
