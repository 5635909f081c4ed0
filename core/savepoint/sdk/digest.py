"""A digest of a step's arguments that is the same in every process. It cannot be decoded.

Objects without stable content (clients, functions, open files) are represented by the name of their class alone, so
that they never cause a false StepChanged; ``repr`` is not used, because it may contain addresses.
"""

import datetime
import enum
import hashlib
from collections.abc import Callable, Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any
from uuid import UUID

from savepoint.sdk.encoding import REGISTRY

_DEPTH_MAX = 50


def digest(value: Any) -> str:
    """Return the digest of a value: 32 hexadecimal digits."""
    sha = hashlib.sha256()
    _feed(sha.update, value, 0)
    return sha.hexdigest()[:32]


def _feed(put: Callable[[bytes], None], value: Any, depth: int) -> None:  # noqa: PLR0912 - one branch per kind
    if depth > _DEPTH_MAX:
        put(b"deep;")
    elif value is None or isinstance(value, bool):
        put(f"{value!r};".encode())
    elif isinstance(value, enum.Enum):
        put(_class_tag(value))
        _put(put, b"member", value.name.encode())
    elif isinstance(value, int):
        put(f"int:{value:d};".encode())
    elif isinstance(value, float):
        put(f"float:{float.__repr__(value)};".encode())
    elif isinstance(value, str):
        _put(put, b"str", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray | memoryview):
        _put(put, b"bytes", bytes(value))
    elif isinstance(value, PurePath | UUID | datetime.date | datetime.time | datetime.timedelta):
        _put(put, _class_tag(value), str(value).encode())
    elif isinstance(value, Mapping):
        put(b"{")
        for key, item in sorted(((digest(key), item) for key, item in value.items()), key=_digest_of_key):
            put(key.encode())
            _feed(put, item, depth + 1)
        put(b"}")
    elif isinstance(value, list | tuple):
        put(b"[")
        for item in value:
            _feed(put, item, depth + 1)
        put(b"]")
    elif isinstance(value, Set):
        put(b"<" + b"".join(sorted(digest(item).encode() for item in value)) + b">")
    else:
        put(_class_tag(value))
        entry = REGISTRY.by_class(value.__class__)
        if entry is not None:
            _feed(put, entry.to_json(value), depth + 1)
        elif is_dataclass(value) and not isinstance(value, type):
            for item in fields(value):
                if item.compare:
                    _put(put, b"field", item.name.encode())
                    _feed(put, getattr(value, item.name), depth + 1)


def _class_tag(value: Any) -> bytes:
    cls = value.__class__
    return f"<{cls.__module__}.{cls.__qualname__}>;".encode()


def _put(put: Callable[[bytes], None], tag: bytes, data: bytes) -> None:
    put(tag + b":" + str(len(data)).encode() + b":")
    put(data)


def _digest_of_key(pair: tuple[str, Any]) -> str:
    return pair[0]
