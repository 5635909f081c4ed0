import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.errors import FormatTooNew, IntegrityError
from savepoint.repository.format import canonical
from savepoint.repository.format.canonical import Fields

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def test_the_bytes_are_canonical() -> None:
    assert canonical.encode({"b": [1, None, True], "a": "é"}) == '{"a":"é","b":[1,null,true]}'.encode()


def test_bytes_that_are_not_text_are_escaped_and_survive_a_round_trip() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    written = canonical.encode([name])
    assert written == b'["caf\\udce9"]'
    assert canonical.decode(written, "x") == [name]


@given(VALUES)
def test_values_survive_a_round_trip(value: object) -> None:
    written = canonical.encode(value)
    assert canonical.decode(written, "x") == value
    assert canonical.decode_canonical(written, "x") == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_value_or_an_integrity_error(content: bytes) -> None:
    try:
        canonical.decode(content, "object")
    except IntegrityError as error:
        assert error.object_key == "object"


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1,"a":2}', b"1.5", b"1e3", b"NaN", b"Infinity", b"", b"{", b"[1] 2", b"\xff", b'"\xed\xa0\x80"',
        b"[" * 100_000, b"9" * 5000,
    ],
)  # fmt: skip
def test_invalid_json_is_refused(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        canonical.decode(content, "object")


@pytest.mark.parametrize("content", [b'{"b":1,"a":2}', b"[1, 2]", b'"\\u0041"', b" 1", b"-0"])
def test_json_in_another_spelling_is_not_canonical(content: bytes) -> None:
    canonical.decode(content, "object")
    with pytest.raises(IntegrityError, match="canonical"):
        canonical.decode_canonical(content, "object")


@pytest.mark.parametrize("value", [{"a": 1.5}, {"a": float("nan")}, {1: "a"}, {"a": (1,)}, {"a": b"x"}, {"a": {2}}])
def test_values_that_would_change_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="meta has no canonical form"):
        canonical.ensure_canonical(value, "meta")


def test_a_canonical_value_is_returned_unchanged() -> None:
    assert canonical.ensure_canonical({"shape": [1, 2]}, "meta") == {"shape": [1, 2]}


def test_times_survive_a_round_trip() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert canonical.time_text(moment) == "2026-01-02T03:04:05.000006Z"
    assert canonical.time_text(moment.astimezone(timezone(timedelta(hours=9)))) == "2026-01-02T03:04:05.000006Z"
    assert canonical.time_of("2026-01-02T03:04:05.000006Z") == moment
    with pytest.raises(ValueError, match="time zone"):
        canonical.time_text(datetime(2026, 1, 2))


class TestFields:
    def fields(self, **values: object) -> Fields:
        return Fields(json.loads(json.dumps(values)), "object")

    def test_a_field_of_every_type_is_read(self) -> None:
        fields = self.fields(
            text="t", none=None, hex="ab", no_hex=None, integer=3, boolean=False, array=[1], texts=["a"],
            mapping={"a": 1}, time="2026-01-02T03:04:05.000006Z", format=1,
        )  # fmt: skip
        fields.format()
        assert fields.has("text")
        assert fields.text("text") == "t"
        assert not fields.has("text")
        assert fields.text_or_none("none") is None
        assert fields.hexadecimal("hex", 2) == "ab"
        assert fields.hexadecimal_or_none("no_hex") is None
        assert fields.integer("integer") == 3
        assert fields.boolean("boolean") is False
        assert fields.array("array") == [1]
        assert fields.texts("texts") == ("a",)
        assert fields.mapping("mapping") == {"a": 1}
        assert fields.time("time").endswith("Z")
        fields.end()

    def test_a_field_that_may_be_null_may_have_a_value(self) -> None:
        fields = self.fields(text="t", hex="ab")
        assert fields.text_or_none("text") == "t"
        assert fields.hexadecimal_or_none("hex", 2) == "ab"

    @pytest.mark.parametrize(
        ("method", "value"),
        [
            ("text", 1), ("text", "x" * 5000), ("text", None), ("hexadecimal", "AB" * 32), ("hexadecimal", "ab"),
            ("integer", True), ("integer", "1"), ("integer", -1), ("integer", 2**63 + 1), ("boolean", 1),
            ("array", {}), ("texts", [1]), ("texts", "a"), ("mapping", []), ("time", "2026-01-02"), ("time", 1),
            ("text_or_none", 1), ("hexadecimal_or_none", "x"),
        ],
    )  # fmt: skip
    def test_invalid_values_are_refused(self, method: str, value: object) -> None:
        with pytest.raises(IntegrityError, match="field") as caught:
            getattr(self.fields(field=value), method)("field")
        assert caught.value.object_key == "object"

    def test_a_missing_field_is_refused(self) -> None:
        with pytest.raises(IntegrityError, match="lacks"):
            self.fields().text("field")

    def test_an_unknown_field_is_refused(self) -> None:
        with pytest.raises(IntegrityError, match="unknown fields: alg"):
            self.fields(alg="none").end()

    def test_a_value_that_is_not_an_object_is_refused(self) -> None:
        with pytest.raises(IntegrityError, match="not a JSON object"):
            Fields([], "object")

    def test_format_versions_are_checked(self) -> None:
        with pytest.raises(FormatTooNew, match="format 2"):
            self.fields(format=2).format()
        for wrong in (0, True, "1", None):
            with pytest.raises(IntegrityError):
                self.fields(format=wrong).format()
