"""Canonical JSON, the only JSON of the format, and typed access to parsed values.

UTF-8, sorted keys, no blanks, integers only. The objects of the format are defined elsewhere. Lone surrogates, which
stand for bytes of a file name that are not UTF-8, are written as ``\\udcXX`` escapes.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from savepoint.errors import FormatTooNew, IntegrityError

FORMAT = 1

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_HEXADECIMAL = re.compile(r"[0-9a-f]*")
_MAX_INTEGER = 2**63


def encode(value: object) -> bytes:
    """Return the canonical bytes of a value made of dict, list, tuple, str, int, bool and None."""
    text = _ENCODER.encode(value)
    return text.encode() if text.isascii() else text.encode("utf-8", "backslashreplace")


def decode(content: bytes | bytearray | memoryview, where: str) -> Any:
    """Parse JSON; raise IntegrityError naming ``where`` for duplicate keys, fractions and invalid JSON."""
    try:
        return _DECODER.decode(str(content, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is not readable JSON: {error}", where) from error


def decode_canonical(content: bytes | bytearray | memoryview, where: str) -> Any:
    """Parse JSON as ``decode`` does, and require that the bytes are canonical."""
    value = decode(content, where)
    if encode(value) != content:
        raise IntegrityError(f"{where} is not in canonical form", where)
    return value


def ensure_canonical(value: Any, what: str) -> Any:
    """Return the value if its canonical bytes decode to an equal one; raise ValueError naming ``what`` otherwise."""
    try:
        same = decode(encode(value), what) == value
    except (TypeError, ValueError, IntegrityError) as error:
        raise ValueError(f"{what} has no canonical form: {error}") from error
    if not same:
        raise ValueError(f"{what} has no canonical form: keys must be strings, numbers integers, sequences lists")
    return value


class Fields:
    """A JSON object whose fields are all known: take each with its type, then call ``end`` to refuse any others.

    Every method raises IntegrityError, naming the object, if a field is missing or has another type.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            self._where = where
            self.refuse("is not a JSON object")
        self._rest: dict[str, Any] = dict(value)
        self._where = where

    def refuse(self, what: str) -> NoReturn:
        """Raise the IntegrityError that names this object."""
        raise IntegrityError(f"{self._where} {what}", self._where)

    def take(self, name: str) -> Any:
        """Take a field of any type."""
        if name not in self._rest:
            self.refuse(f"lacks the field {name!r}")
        return self._rest.pop(name)

    def has(self, name: str) -> bool:
        """Return whether the object has the field and it has not been taken yet."""
        return name in self._rest

    def text(self, name: str, *, max_length: int = 4096) -> str:
        """Take a string of at most ``max_length`` characters."""
        value = self.take(name)
        if not isinstance(value, str) or len(value) > max_length:
            self.refuse(f"has no valid string in {name!r}")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Take a string or null."""
        if name in self._rest and self._rest[name] is None:
            self._rest.pop(name)
            return None
        return self.text(name)

    def hexadecimal(self, name: str, digits: int = 64) -> str:
        """Take a string of ``digits`` lower-case hexadecimal digits."""
        value = self.text(name)
        if not is_hexadecimal(value, digits):
            self.refuse(f"does not have {digits} hexadecimal digits in {name!r}")
        return value

    def hexadecimal_or_none(self, name: str, digits: int = 64) -> str | None:
        """Take a string of ``digits`` lower-case hexadecimal digits, or null."""
        if name in self._rest and self._rest[name] is None:
            self._rest.pop(name)
            return None
        return self.hexadecimal(name, digits)

    def integer(self, name: str, *, minimum: int = 0, maximum: int = _MAX_INTEGER) -> int:
        """Take an integer from ``minimum`` to ``maximum``."""
        value = self.take(name)
        if not is_integer(value) or not minimum <= value <= maximum:
            self.refuse(f"has no integer between {minimum} and {maximum} in {name!r}")
        return int(value)

    def integer_or_none(self, name: str) -> int | None:
        """Take an integer of at least 0, or None."""
        if name in self._rest and self._rest[name] is None:
            self._rest.pop(name)
            return None
        return self.integer(name)

    def boolean(self, name: str) -> bool:
        """Take a boolean."""
        value = self.take(name)
        if not isinstance(value, bool):
            self.refuse(f"has no boolean in {name!r}")
        return value

    def array(self, name: str) -> list[Any]:
        """Take a list."""
        value = self.take(name)
        if not isinstance(value, list):
            self.refuse(f"has no list in {name!r}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Take a list of strings."""
        value = self.array(name)
        if not all(isinstance(each, str) for each in value):
            self.refuse(f"has other values than strings in {name!r}")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """Take an object with arbitrary keys."""
        value = self.take(name)
        if not isinstance(value, dict):
            self.refuse(f"has no object in {name!r}")
        return value

    def time(self, name: str) -> str:
        """Take a time, as its text."""
        value = self.text(name)
        if not _TIME.fullmatch(value):
            self.refuse(f"has no time in {name!r}")
        return value

    def format(self) -> None:
        """Take the format version; FormatTooNew if it is above FORMAT, before any other field is checked."""
        value = self.take("format")
        if is_integer(value) and value > FORMAT:
            raise FormatTooNew(f"{self._where} has format {value}, this version reads {FORMAT}; upgrade Savepoint")
        if value != FORMAT or not is_integer(value):
            self.refuse("has an unknown format")

    def end(self) -> None:
        """Refuse fields that were not taken."""
        if self._rest:
            self.refuse(f"has unknown fields: {', '.join(sorted(self._rest))}")


def is_integer(value: object) -> bool:
    """Return whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_hexadecimal(value: str, digits: int) -> bool:
    """Return whether the text consists of ``digits`` lower-case hexadecimal digits."""
    return len(value) == digits and _HEXADECIMAL.fullmatch(value) is not None


def time_text(moment: datetime) -> str:
    """Return the format's text of an aware time."""
    if moment.tzinfo is None:
        raise ValueError("a time of the format needs a time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def time_of(text: str) -> datetime:
    """Return the aware time of a text that time_text wrote."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def _fraction(text: str) -> NoReturn:
    raise ValueError(f"{text} is not an integer")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_float=_fraction, parse_constant=_fraction, object_pairs_hook=_unique)
