"""The codec of both wire protocols: frozen dataclasses to and from JSON objects, driven by the fields' types.

Field names are camelCase on the wire. Decoding ignores unknown fields, refuses values of the wrong type, and builds
only the classes that the field types name. The codec does no I/O and imports the standard library only. A ``Codec``
holds what the agent protocol and the control protocol decode differently; encoding is the same for both.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")
INTEGER_LIMIT: Final = 1 << 63  # no integer on the wire reaches this, in either direction


class ProtocolError(ValueError):
    """A message that does not follow its protocol; the text names the field."""


class Message:
    """Base class of messages that need more than their field types say; plain dataclasses are messages, too."""

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object of this message."""
        return encode_fields(self)

    def validate(self) -> None:
        """Raise ProtocolError if the decoded fields do not fit together."""


@dataclass(frozen=True)
class _WireField:
    name: str
    wire: str
    kind: Any
    required: bool


def camel_case(name: str) -> str:
    """Return the spelling of a field on the wire: ``hold_seconds`` becomes ``holdSeconds``."""
    head, *rest = name.split("_")
    return head + "".join(map(str.capitalize, rest))


_ABSENT: Final = object()
_FIELDS: Final[dict[type[Any], tuple[_WireField, ...]]] = {}


def _wire_fields(cls: type[Any]) -> tuple[_WireField, ...]:
    known = _FIELDS.get(cls)
    if known is None:
        hints = typing.get_type_hints(cls)
        known = _FIELDS[cls] = tuple(
            _WireField(
                item.name,
                camel_case(item.name),
                hints[item.name],
                item.default is MISSING and item.default_factory is MISSING,
            )
            for item in fields(cls)
        )
    return known


def encode_fields(message: Any) -> dict[str, Any]:
    """Return all fields of a dataclass as a JSON object."""
    return {item.wire: _encode(getattr(message, item.name)) for item in _wire_fields(type(message))}


def _encode(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_wire()
    if is_dataclass(value) and not isinstance(value, type):
        return encode_fields(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Codec:
    """The decoder of one protocol.

    Field types: str, bool, int, float, Literal, ``X | None``, ``tuple[X, ...]``, dataclasses, ``dict[str, X]`` (values
    are checked) and ``Mapping`` (any JSON object, taken as it is).
    """

    null_is_absent: bool
    """True if a field that is null counts as missing, so that its default applies."""
    smallest_integer: int
    """The smallest integer that is accepted."""
    full_paths: bool
    """True if errors name the whole path of a field, False if they name its class and the field."""

    def decode(self, cls: type[T], raw: object, where: str) -> T:
        """Return the message of class ``cls`` in ``raw``, a value from ``json.loads``.

        Raises ProtocolError that names the field; ``where`` is what error texts call this object.
        """
        if not isinstance(raw, dict):
            raise ProtocolError(self._mismatch(cls, raw, where))
        values = {}
        for item in _wire_fields(cls):
            value = raw.get(item.wire, _ABSENT)
            if value is None and self.null_is_absent:
                value = _ABSENT
            if value is not _ABSENT:
                values[item.name] = self._decode(item.kind, value, f"{where}.{item.wire}")
            elif item.required:
                raise ProtocolError(f"{where}: field {item.wire!r} is missing")
        message = cls(**values)
        if isinstance(message, Message):
            message.validate()
        return message

    def _decode(self, kind: Any, raw: Any, where: str) -> Any:
        if kind is str and isinstance(raw, str):  # most fields are text, and a message may have many
            return raw
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is types.UnionType:
            (inner,) = (item for item in arguments if item is not types.NoneType)
            return None if raw is None else self._decode(inner, raw, where)
        if origin is tuple and isinstance(raw, list):
            return tuple(self._decode(arguments[0], item, f"{where}[]") for item in raw)
        if origin is dict and isinstance(raw, dict):
            return {str(key): self._decode(arguments[1], item, f"{where}.{key}") for key, item in raw.items()}
        if is_dataclass(kind) and isinstance(kind, type):
            return self.decode(kind, raw, where if self.full_paths else kind.__name__)
        if self._fits(kind, origin, raw):
            return raw
        raise ProtocolError(self._mismatch(kind, raw, where))

    def _fits(self, kind: Any, origin: Any, raw: Any) -> bool:
        """Return whether ``raw`` is a value of ``kind`` that needs no conversion."""
        if origin is Mapping:
            return isinstance(raw, dict)
        if origin is typing.Literal:
            return raw in typing.get_args(kind)
        if kind is bool or isinstance(raw, bool):  # JSON's true is not the number 1
            return kind is bool and isinstance(raw, bool)
        if kind is int:
            return isinstance(raw, int) and self.smallest_integer <= raw < INTEGER_LIMIT
        if kind is float:
            return isinstance(raw, int | float)
        return kind is str and isinstance(raw, str)

    def _mismatch(self, kind: Any, raw: object, where: str) -> str:
        if self.full_paths:
            return f"{where}: expected {getattr(kind, '__name__', kind)}"
        if is_dataclass(kind):
            return f"{where} must be an object"
        return f"{where}: a {type(raw).__name__} of this value does not belong there"
