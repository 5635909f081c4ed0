"""Readers of environment variables, shared by the settings of every process. Standard library only.

Each reader takes the environment as a mapping; only the entry point of a process passes ``os.environ``.
"""

from collections.abc import Mapping, Sequence


class SettingsError(ValueError):
    """An environment variable is missing or invalid; the message names it and says what it must be."""


def required(environment: Mapping[str, str], name: str, explanation: str) -> str:
    """Return the variable. Raises SettingsError, with the explanation, if it is unset or empty."""
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set: {explanation}")
    return value


def text(environment: Mapping[str, str], name: str, default: str) -> str:
    """Return the variable, or the default if it is unset or empty."""
    return environment.get(name) or default


def choice(environment: Mapping[str, str], name: str, default: str, options: Sequence[str]) -> str:
    """Return the variable, or the default if it is unset or empty. Raises SettingsError unless it is an option."""
    value = text(environment, name, default)
    if value not in options:
        raise SettingsError(f"{name} must be one of {', '.join(options)}, not {value!r}")
    return value


def integer(
    environment: Mapping[str, str], name: str, default: int, *, minimum: int = 0, maximum: int | None = None
) -> int:
    """Return the variable as an integer, or the default if it is unset or empty. Raises SettingsError."""
    return parse_integer(name, text(environment, name, str(default)), minimum=minimum, maximum=maximum)


def parse_integer(name: str, value: str, *, minimum: int = 0, maximum: int | None = None) -> int:
    """Return the value of the named variable as an integer.

    Raises SettingsError unless it consists of digits and is within the limits.
    """
    limits = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    if value.isascii() and value.isdigit():
        number = int(value)
        if number >= minimum and (maximum is None or number <= maximum):
            return number
    raise SettingsError(f"{name} must be a whole number {limits}, not {value!r}")


def seconds(environment: Mapping[str, str], name: str, default: float, *, minimum: float, maximum: float) -> float:
    """Return the variable as a number of seconds, or the default if it is unset or empty.

    Raises SettingsError unless it is a number within the limits.
    """
    value = environment.get(name, "")
    if not value:
        return default
    try:
        number = float(value)
    except ValueError as error:
        raise SettingsError(f"{name} must be a number of seconds, not {value!r}") from error
    if not minimum <= number <= maximum:
        raise SettingsError(f"{name} must be from {minimum:g} to {maximum:g} seconds, not {value}")
    return number
