"""Values are decoded exactly as they were encoded, or are refused with their path."""

import datetime
import enum
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.sdk.digest import digest
from savepoint.sdk.encoding import TypeRegistry, decode, encode, utf8
from savepoint.sdk.errors import NotEncodable, RestoreFailed

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.just("$type"), inner) | st.tuples(inner, inner) | st.just(())
    ),
    max_leaves=30,
)


@given(values)
def test_a_decoded_value_is_equal_and_of_the_same_types(value: object) -> None:
    decoded = decode(utf8(encode(value)))
    assert decoded == value
    assert repr(decoded) == repr(value)  # 1 is not True, (1,) is not [1], -0.0 is not 0.0


def test_not_a_number_survives_a_round_trip() -> None:
    assert math.isnan(decode(encode([float("nan")]))[0])
    assert decode(encode(float("-inf"))) == -math.inf


def test_a_lone_surrogate_survives_utf8() -> None:
    assert decode(utf8(encode({"a": "\ud800 é"}))) == {"a": "\ud800 é"}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"notes": [{}, {"owner": object()}]}, "$.notes[1].owner"),
        ({"a": {1: 2}}, "$.a"),
        ({"a": {1, 2}}, "$.a"),
        ([bytearray(b"x")], "$[0]"),
        ({"when": datetime.date(2000, 1, 1)}, "$.when"),
        ({"n": (1, [2, 3j])}, "$.n[1][1]"),
        ({"big": 10**5000}, "$"),
    ],
)
def test_values_that_would_be_lost_are_refused_with_their_path(value: object, path: str) -> None:
    with pytest.raises(NotEncodable) as caught:
        encode(value)
    assert caught.value.path == path
    assert path in str(caught.value)


def test_subclasses_that_would_be_decoded_as_another_type_are_refused() -> None:
    class Name(str):
        pass

    class Colour(enum.IntEnum):
        RED = 1

    for value in (Name("x"), Colour.RED):
        with pytest.raises(NotEncodable):
            encode([value])


def test_a_shared_reference_is_refused_with_both_places() -> None:
    shared = {"x": 1}
    with pytest.raises(NotEncodable, match=r"\$\.b\[0\] is the same object as \$\.a"):
        encode({"a": shared, "b": [shared]})


def test_a_cycle_is_refused() -> None:
    loop: dict[str, object] = {}
    loop["self"] = {"again": loop}
    with pytest.raises(NotEncodable, match=r"\$\.self\.again contains itself"):
        encode(loop)


def test_values_that_are_nested_too_deeply_are_refused() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(NotEncodable, match="levels deep"):
        encode(deep)


def test_a_tuple_may_be_referenced_from_two_places() -> None:
    pair = (1, 2)
    assert decode(encode([pair, pair])) == [pair, pair]


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


def test_registered_classes_are_restored() -> None:
    types = TypeRegistry()
    types.register(Point, "point", lambda p: {"x": p.x, "y": p.y}, lambda raw: Point(raw["x"], raw["y"]))
    types.register(Decimal, "decimal", str, Decimal)
    one = Decimal("1.10")
    decoded = decode(encode({"p": [Point(1, 2)], "d": one, "e": one}, registry=types), registry=types)
    assert (decoded["p"][0].x, decoded["p"][0].y, str(decoded["d"])) == (1, 2, "1.10")


def test_a_registered_entity_referenced_twice_is_refused() -> None:
    types = TypeRegistry()
    types.register(Point, "point", lambda p: [p.x, p.y], lambda raw: Point(*raw))
    point = Point(1, 2)
    with pytest.raises(NotEncodable, match="same object"):
        encode([point, point], registry=types)
    types.register(Node := type("Node", (), {}), "node", lambda node: node.__dict__, lambda raw: None)
    node = Node()
    node.me = node
    with pytest.raises(NotEncodable, match="contains itself"):
        encode(node, registry=types)


def test_reading_an_unregistered_class_names_the_remedy() -> None:
    with pytest.raises(RestoreFailed, match=r"'point'.*savepoint\.register"):
        decode('{"$type":"point","value":[1,2]}')


@pytest.mark.parametrize(
    "text",
    ["{", '{"$type":"bytes","value":3}', '{"$type":"tuple","value":3}', '{"$type":"float","value":"x"}',
     '{"$type":"dict","value":3}', '{"$type":[1]}', '{"$type":"bytes","value":"%%"}', "[" * 100_000],
)  # fmt: skip
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(RestoreFailed):
        decode(text)


def test_a_taken_name_is_refused() -> None:
    types = TypeRegistry()
    types.register(Point, "point", vars, lambda raw: Point(**raw))
    types.register(Point, "point", vars, lambda raw: Point(**raw))  # again, as a reloaded module does
    with pytest.raises(ValueError, match="taken"):
        types.register(Decimal, "point", str, Decimal)
    with pytest.raises(ValueError, match="taken"):
        types.register(Decimal, "tuple", str, Decimal)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@given(values)
def test_the_digest_of_equal_content_is_equal(value: object) -> None:
    assert digest(value) == digest(decode(encode(value)))


def test_the_digest_distinguishes_contents() -> None:
    values = [
        0, False, None, "", b"", 1, 1.0, True, "1", [], {}, [1], [[1]], ["1"], [1, 2], [12], ["1", "2"], ["12"],
        {"a": 1}, {"a": 2}, {"b": 1}, {1}, {2}, Colour.RED, Colour.BLUE, datetime.date(2000, 1, 1),
        datetime.date(2000, 1, 2),
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_the_digest_represents_objects_without_content_by_their_class() -> None:
    assert digest(Point(1, 2)) == digest(Point(3, 4)) != digest(object())
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
