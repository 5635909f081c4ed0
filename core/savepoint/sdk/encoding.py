"""Encode values as JSON text and decode them exactly: the result equals the original, or the value is refused.

Plain JSON values are written unchanged. Values that JSON would change or lose (bytes, tuples, NaN, dicts with the key
``$type``, registered classes) are written as ``{"$type": name, "value": ...}``. Object graphs are not supported:
shared references and cycles are refused. Decoding instantiates only classes that the program has registered.
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


class TypeRegistry:
    """The classes that a program registered, by class and by name."""

    def __init__(self) -> None:
        self._classes: dict[type[Any], _Registered] = {}
        self._names: dict[str, _Registered] = {}

    def register(self, cls: type[T], name: str, to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> None:
        """Register a class; see ``savepoint.register``. Registering it again under its name replaces the entry."""
        taken = name in self._names and self._classes.get(cls) != self._names[name]
        if not name or name in _BUILT_IN or taken:
            raise ValueError(f"the type name {name!r} is taken")
        entry = _Registered(name, to_json, from_json)
        self._classes[cls] = self._names[name] = entry

    def by_class(self, cls: type[Any]) -> _Registered | None:
        """Return the entry for values of exactly this class; subclasses need an entry of their own."""
        return self._classes.get(cls)

    def by_name(self, name: object) -> _Registered | None:
        """Return the entry registered under a stored name."""
        return self._names.get(name) if isinstance(name, str) else None


REGISTRY: Final = TypeRegistry()


def register(cls: type[T], name: str, to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> None:
    """Let documents, step results and effect results hold instances of a class.

    Register the class before the first value of it is read, in every program that reads the state.

    Args:
        cls: The class; its subclasses need a registration of their own.
        name: The name stored with each value. Keep it when the class is renamed.
        to_json: Returns a savable value for an instance.
        from_json: Returns an instance for what ``to_json`` returned.

    Raises:
        ValueError: The name is empty, built in, or registered for another class.
    """
    REGISTRY.register(cls, name, to_json, from_json)


def encode(value: Any, where: str = "$", registry: TypeRegistry = REGISTRY) -> str:
    """Return the JSON text of ``value``. Raises NotEncodable that names the path below ``where``."""
    plain = _Encoder(registry).plain(value, where, 0)
    try:
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False)
    except ValueError as error:  # an integer with more digits than Python converts to text
        raise NotEncodable(f"{where} cannot be written as JSON: {error}", where) from error


def decode(text: str | bytes, where: str = "$", registry: TypeRegistry = REGISTRY) -> Any:
    """Return the value that ``encode`` was given. Raises RestoreFailed."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RestoreFailed(f"{where}: the saved text is not JSON") from error
    return _Decoder(registry).value(raw, where)


def utf8(text: str) -> bytes:
    """Return JSON text as UTF-8; a lone surrogate, which UTF-8 cannot represent, becomes a JSON escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join(char if not 0xD800 <= ord(char) <= 0xDFFF else f"\\u{ord(char):04x}" for char in text).encode()


class _Encoder:
    """One pass over a value. ``first_paths`` maps mutable objects, by identity, to where each first occurred."""

    def __init__(self, registry: TypeRegistry) -> None:
        self.registry = registry
        self.first_paths: dict[int, str] = {}
        self.kept_alive: list[Any] = []  # results of to_json: while they live, their identities are not reused

    def plain(self, value: Any, where: str, depth: int) -> Any:  # noqa: PLR0911 - one return per kind of value
        """Return ``value`` itself if JSON represents it exactly, else its marked form."""
        cls = value.__class__
        if cls in _PLAIN:
            return value
        if depth > DEPTH_MAX:
            raise NotEncodable(f"{where[:200]} is nested more than {DEPTH_MAX} levels deep", where)
        if cls is float:
            return value if math.isfinite(value) else {MARK: "float", "value": repr(value)}
        if cls is dict:
            self._refuse_shared(value, where)
            return self._dict(value, where, depth + 1)
        if cls is list:
            self._refuse_shared(value, where)
            return self._list(value, where, depth + 1)
        if cls is tuple:  # immutable: a program cannot see that two places share one tuple
            return {MARK: "tuple", "value": list(self._list(value, where, depth + 1))}
        if cls is bytes:
            return {MARK: "bytes", "value": base64.b64encode(value).decode()}
        entry = self.registry.by_class(cls)
        if entry is None:
            raise NotEncodable(
                f"{where} is a {cls.__module__}.{cls.__qualname__}, which cannot be saved: use plain JSON values, "
                f"or savepoint.register the class",
                where,
            )
        if not _is_value(cls):
            self._refuse_shared(value, where)
        inner = entry.to_json(value)
        self.kept_alive.append(inner)
        return {MARK: entry.name, "value": self.plain(inner, where, depth + 1)}

    def _refuse_shared(self, value: Any, where: str) -> None:
        first = self.first_paths.setdefault(id(value), where)
        if first is not where:
            problem = "contains itself" if where.startswith(first) else f"is the same object as {first}"
            raise NotEncodable(
                f"{where} {problem}: an object referenced from two places would be restored as two objects; "
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
    """Return whether equal objects of the class are interchangeable, so that sharing one cannot be noticed."""
    defines_equality = any("__eq__" in vars(base) for base in cls.__mro__[:-1])
    return issubclass(cls, enum.Enum) or (defines_equality and cls.__hash__ is not None)


class _Decoder:
    """Turns marked forms back into values."""

    def __init__(self, registry: TypeRegistry) -> None:
        self.registry = registry

    def value(self, raw: Any, where: str) -> Any:
        """Return ``raw`` with its marked forms decoded; plain containers are changed in place."""
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
            raise RestoreFailed(f"{where}: the saved value of type {name!r} is damaged") from error
        entry = self.registry.by_name(name)
        if entry is None:
            raise RestoreFailed(
                f"{where} was saved as the registered type {name!r}, which this program has not registered: "
                f"call savepoint.register before reading the value"
            )
        return entry.from_json(self.value(inner, where))
