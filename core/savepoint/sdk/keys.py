"""Names and keys of durable scopes as text, and compact sets of keys. Scopes themselves are in scope.py."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final

from savepoint.sdk.errors import NotEncodable, RestoreFailed

NAME_MAX: Final = 200
_NAME_ESCAPES: Final = str.maketrans({"%": "%25", "/": "%2F", "#": "%23", "[": "%5B"})
SEGMENT_ESCAPES: Final = str.maketrans({"%": "%25", "/": "%2F"})


def checked_name(name: str, what: str) -> str:
    """Return ``name`` if it can be part of a scope's path; else raise ValueError."""
    if not isinstance(name, str) or not name or len(name) > NAME_MAX or not name.isprintable():
        raise ValueError(f"the name of a {what} must be 1 to {NAME_MAX} printable characters, not {name!r:.80}")
    return name


def numbered(name: str, ordinal: int | str) -> str:
    """Return the label ``docs#0`` of the first thing named ``docs`` in its scope. A ``#`` in the name is escaped."""
    return f"{name.translate(_NAME_ESCAPES)}#{ordinal}"


def key_text(key: object, what: str) -> str:
    """Return a key (a string, an integer or a tuple of them) as canonical text. Raises NotEncodable."""
    if key.__class__ is int:
        return str(key)
    if key.__class__ is str or _is_tuple_of_keys(key):
        return json.dumps(key, ensure_ascii=False, separators=(",", ":"))
    raise NotEncodable(
        f"{what}: a key must be a string, an integer or a tuple of them, not {key.__class__.__qualname__}; "
        f"pass key= with a function that returns one for each item"
    )


def _is_tuple_of_keys(key: object) -> bool:
    if not isinstance(key, tuple) or key.__class__ is not tuple or not key:
        return False
    return all(item.__class__ in (str, int) for item in key)


def iteration_segment(loop: str, key: str) -> str:
    """Return the path segment of one iteration: ``docs#0["a"]``."""
    return f"{loop}[{key.translate(SEGMENT_ESCAPES)}]"


class KeySet:
    """A set of key texts. Integers are stored as ranges, so that an endless count stays as small as one number."""

    __slots__ = ("_ends", "_starts", "_texts")

    def __init__(self) -> None:
        self._starts: list[int] = []  # sorted, disjoint, never adjacent: [start, end)
        self._ends: list[int] = []
        self._texts: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._texts) + sum(self._ends) - sum(self._starts)

    def __contains__(self, key: str) -> bool:
        number = _integer(key)
        if number is None:
            return key in self._texts
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def add(self, key: str) -> None:
        """Add a key; a key that is in the set already changes nothing."""
        number = _integer(key)
        if number is None:
            self._texts[key] = None
            return
        at = bisect_right(self._starts, number)  # ranges before `at` start at or below the number
        if at and number < self._ends[at - 1]:
            return
        joins_left = at > 0 and self._ends[at - 1] == number
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_left:
            self._ends[at - 1] = number + 1
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number + 1)

    def clear(self) -> None:
        """Remove every key."""
        self._starts, self._ends, self._texts = [], [], {}

    def to_plain(self) -> dict[str, Any]:
        """Return the set as plain JSON values, for the execution component."""
        return {"ranges": list(zip(self._starts, self._ends, strict=True)), "texts": list(self._texts)}

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> "KeySet":
        """Return the set that ``to_plain`` described. Raises RestoreFailed."""
        keys = cls()
        try:
            for start, end in raw.get("ranges", []):
                keys._starts.append(int(start))
                keys._ends.append(int(end))
            keys._texts = dict.fromkeys(str(text) for text in raw.get("texts", []))
        except (TypeError, ValueError, AttributeError) as error:
            raise RestoreFailed("the saved keys of a loop cannot be read") from error
        return keys


def _integer(key: str) -> int | None:
    return int(key) if key[0] not in '"[' else None
