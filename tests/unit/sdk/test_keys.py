"""Keys, sets of keys, and the numbers of things that fail and are retried."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.sdk.errors import NotEncodable
from savepoint.sdk.keys import KeySet, checked_name, iteration_segment, key_text
from savepoint.sdk.scope import Ordinals, Scope

keys = st.integers(-5, 20) | st.text(max_size=2) | st.tuples(st.integers(0, 2), st.text(max_size=1))


@given(st.lists(keys), st.lists(keys))
def test_a_key_set_behaves_as_a_set(added: list[object], others: list[object]) -> None:
    texts = [key_text(key, "loop") for key in added]
    found = KeySet()
    for text in texts:
        found.add(text)
    found = KeySet.from_plain(found.to_plain())
    assert len(found) == len(set(texts))
    for key in [*added, *others]:
        text = key_text(key, "loop")
        assert (text in found) == (text in texts)


def test_an_endless_count_stays_small() -> None:
    found = KeySet()
    for number in itertools.islice(itertools.count(), 10_000):
        found.add(str(number))
    assert found.to_plain() == {"ranges": [(0, 10_000)], "texts": []}


@given(st.lists(keys, unique_by=lambda key: (type(key), key)))
def test_key_texts_are_unique(some: list[object]) -> None:
    assert len({iteration_segment("a#0", key_text(key, "loop")) for key in some}) == len(some)
    assert not any("/" in iteration_segment("a#0", key_text(key, "loop")) for key in some)


@pytest.mark.parametrize("key", [None, True, 1.5, b"x", [1], (), (1, None), object()])
def test_keys_that_are_not_stable_are_refused(key: object) -> None:
    with pytest.raises(NotEncodable, match="key="):
        key_text(key, "loop 'docs'")


@pytest.mark.parametrize("name", ["", "a\n", "x" * 201, 3])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        checked_name(name, "step")


def test_the_number_of_a_failed_call_is_used_again() -> None:
    numbers = Ordinals()
    assert [numbers.take("a"), numbers.take("a"), numbers.take("b")] == [0, 1, 0]
    numbers.give_back("a", 0)
    assert numbers.peek("a") == 0
    assert [numbers.take("a"), numbers.take("a")] == [0, 2]


def test_names_with_separators_do_not_collide() -> None:
    root = Scope("", None)
    escaped = root.child('a%2Fb#0["x%2Fy"]').child("c#0")
    assert root.descendant(escaped.path) is escaped
