"""The readers of environment variables that the settings of all processes share."""

import pytest
from savepoint.contract.environment import SettingsError, choice, integer, parse_integer, required, seconds, text

NAME = "SAVEPOINT_X"


def test_an_unset_or_empty_variable_gets_its_default() -> None:
    for environment in ({}, {NAME: ""}):
        assert text(environment, NAME, "a") == "a"
        assert choice(environment, NAME, "a", ("a", "b")) == "a"
        assert integer(environment, NAME, 7) == 7
        assert seconds(environment, NAME, 2.5, minimum=1, maximum=3) == 2.5
        with pytest.raises(SettingsError, match=f"{NAME} is not set: the name of the pod"):
            required(environment, NAME, "the name of the pod")


def test_a_set_variable_is_parsed() -> None:
    assert required({NAME: "a"}, NAME, "") == "a"
    assert choice({NAME: "b"}, NAME, "a", ("a", "b")) == "b"
    assert integer({NAME: "0"}, NAME, 7, maximum=9) == 0
    assert seconds({NAME: "1.5"}, NAME, 2.5, minimum=1, maximum=3) == 1.5


@pytest.mark.parametrize("value", ["", "-1", "1.5", "four", "²", "٤", "10", "2"])
def test_a_number_that_is_malformed_or_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"{NAME} must be a whole number from 3 to 9"):
        parse_integer(NAME, value, minimum=3, maximum=9)


@pytest.mark.parametrize("value", ["soon", "0.5", "4", "nan"])
def test_seconds_that_are_malformed_or_out_of_range_are_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=NAME):
        seconds({NAME: value}, NAME, 2.5, minimum=1, maximum=3)


def test_an_unknown_choice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="must be one of a, b, not 'c'"):
        choice({NAME: "c"}, NAME, "a", ("a", "b"))
