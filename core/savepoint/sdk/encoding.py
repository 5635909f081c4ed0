"""Values to JSON text and back, exactly: what comes back equals what was saved, or the value is refused by its path.

Plain JSON values stand for themselves. Whatever JSON would bend or lose (bytes, tuples, NaN, dicts with the key
``$type``, registered classes) is written as ``{"$type": name, "value": ...}``. It is not a serialiser of object
graphs: shared references and cycles are refused, and no class is ever looked up by what the text says, only by what
the program registered.
"""

import base64
import binascii
import enum
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from savepoint.sdk.errors import NotEncodable, RestoreFailed

T = TypeVar("T")
MARK: Final = "$type"
DEPTH_MAX: Final = 200
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_BUILT_IN: Final = ("tuple", "bytes", "float", "dict")


@dataclass(frozen=True)
class _Registered:
    name: str
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


class Types:
    """The classes a program registered, by class and by name."""

    def __init__(self) -> None:
        self._by_class: dict[type[Any], _Registered] = {}
        self._by_name: dict[str, _Registered] = {}

    def register(self, cls: type[T], name: str, to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> None:
        """See ``savepoint.register``."""
        if name in _BUILT_IN or not name or (name in self._by_name and self._by_class.get(cls) != self._by_name[name]):
            raise ValueError(f"the type name {name!r} is taken")
        entry = _Registered(name, to_json, from_json)
        self._by_class[cls] = self._by_name[name] = entry

    def of(self, cls: type[Any]) -> _Registered | None:
        """How values of exactly this class are written."""
        return self._by_class.get(cls)

    def named(self, name: object) -> _Registered | None:
        """How values of the class of this name are read."""
        return self._by_name.get(name) if isinstance(name, str) else None


TYPES: Final = Types()


def register(cls: type[T], name: str, to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> None:
    """Let documents, step results and effect results hold ``cls``: ``to_json`` gives a savable value,
    ``from_json`` gives the object back. ``name`` is what is stored: keep it when the class is renamed."""
    TYPES.register(cls, name, to_json, from_json)


def encode(value: Any, where: str = "$", types: Types = TYPES) -> str:
    """JSON text of ``value``. Raises NotEncodable naming the path below ``where``."""
    plain = _Encoder(types).plain(value, where, 0)
    try:
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False)
    except ValueError as error:  # a whole number of more digits than Python prints
        raise NotEncodable(f"{where} cannot be written as JSON: {error}", where) from error


def decode(text: str | bytes, where: str = "$", types: Types = TYPES) -> Any:
    """The value that ``encode`` was given. Raises RestoreFailed."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RestoreFailed(f"{where}: the saved text is not JSON") from error
    return _Decoder(types).value(raw, where)


def utf8(text: str) -> bytes:
    """UTF-8 of JSON text; a lone surrogate, which UTF-8 cannot hold, becomes an escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join(char if not 0xD800 <= ord(char) <= 0xDFFF else f"\\u{ord(char):04x}" for char in text).encode()


class _Encoder:
    """One pass over a value; ``seen`` holds the mutable things met so far, by identity."""

    def __init__(self, types: Types) -> None:
        self.types = types
        self.seen: dict[int, str] = {}
        self.kept: list[Any] = []  # what to_json returned: kept alive, so that no identity is given out twice

    def plain(self, value: Any, where: str, depth: int) -> Any:  # noqa: PLR0911 - one return per kind of value
        """``value`` itself where JSON holds it as it is, else its marked form."""
        cls = value.__class__
        if cls in _PLAIN:
            return value
        if depth > DEPTH_MAX:
            raise NotEncodable(f"{where[:200]} is nested more than {DEPTH_MAX} levels deep", where)
        if cls is float:
            return value if math.isfinite(value) else {MARK: "float", "value": repr(value)}
        if cls is dict:
            self._enter(value, where)
            return self._dict(value, where, depth + 1)
        if cls is list:
            self._enter(value, where)
            return self._list(value, where, depth + 1)
        if cls is tuple:  # immutable: the same one in two places is no sharing that anyone could see
            return {MARK: "tuple", "value": list(self._list(value, where, depth + 1))}
        if cls is bytes:
            return {MARK: "bytes", "value": base64.b64encode(value).decode()}
        entry = self.types.of(cls)
        if entry is None:
            raise NotEncodable(
                f"{where} is a {cls.__module__}.{cls.__qualname__}, which cannot be saved: use plain JSON values, "
                f"or savepoint.register the class",
                where,
            )
        if not _is_value(cls):
            self._enter(value, where)
        inner = entry.to_json(value)
        self.kept.append(inner)
        return {MARK: entry.name, "value": self.plain(inner, where, depth + 1)}

    def _enter(self, value: Any, where: str) -> None:
        first = self.seen.setdefault(id(value), where)
        if first is not where:
            what = "holds itself" if where.startswith(first) else f"is the same object as {first}"
            raise NotEncodable(
                f"{where} {what}: a reference that stands in two places would come back as two objects; "
                f"store it once and refer to it by a key, or store a copy",
                where,
            )

    def _dict(self, value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for key, item in value.items():
            if key.__class__ is not str:
                raise NotEncodable(f"{where} has the key {key!r}, which is not a string", where)
            if item.__class__ not in _PLAIN:
                plain = self.plain(item, f"{where}.{key}", depth)
                if plain is not item:
                    changed[key] = plain
        result = {**value, **changed} if changed else value
        return {MARK: "dict", "value": result} if MARK in value else result

    def _list(self, value: Any, where: str, depth: int) -> Any:
        changed: dict[int, Any] = {}
        for index, item in enumerate(value):
            if item.__class__ not in _PLAIN:
                plain = self.plain(item, f"{where}[{index}]", depth)
                if plain is not item:
                    changed[index] = plain
        return [changed.get(index, item) for index, item in enumerate(value)] if changed else value


def _is_value(cls: type[Any]) -> bool:
    """Whether equal objects of the class are interchangeable, so that sharing one cannot be seen."""
    own_equality = any("__eq__" in vars(base) for base in cls.__mro__[:-1])
    return issubclass(cls, enum.Enum) or (own_equality and cls.__hash__ is not None)


class _Decoder:
    def __init__(self, types: Types) -> None:
        self.types = types

    def value(self, raw: Any, where: str) -> Any:
        """``raw`` with its marked forms turned back; plain containers are filled in place."""
        if raw.__class__ is dict:
            if MARK in raw:
                return self._marked(raw, where)
            for key, item in raw.items():
                if item.__class__ is dict or item.__class__ is list:
                    raw[key] = self.value(item, f"{where}.{key}")
        elif raw.__class__ is list:
            for index, item in enumerate(raw):
                if item.__class__ is dict or item.__class__ is list:
                    raw[index] = self.value(item, f"{where}[{index}]")
        return raw

    def _marked(self, raw: dict[str, Any], where: str) -> Any:
        name = raw[MARK]
        inner: Any = raw.get("value")
        try:
            match name:
                case "tuple":
                    return tuple(self.value(inner, where))
                case "bytes":
                    return base64.b64decode(inner, validate=True)
                case "float":
                    return float(inner)
                case "dict":
                    return {key: self.value(item, f"{where}.{key}") for key, item in inner.items()}
        except (TypeError, AttributeError, binascii.Error, ValueError) as error:
            raise RestoreFailed(f"{where}: not a saved value of the type {name!r}") from error
        entry = self.types.named(name)
        if entry is None:
            raise RestoreFailed(
                f"{where} was saved as the registered type {name!r}, which this program has not registered: "
                f"call savepoint.register before the value is read"
            )
        return entry.from_json(self.value(inner, where))
