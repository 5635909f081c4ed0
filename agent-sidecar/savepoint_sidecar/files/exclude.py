"""Matches paths against the policy's exclude patterns. Pure; paths are relative to the state root."""

import re
from collections.abc import Iterable

from savepoint.contract.names import MARKER_DIRECTORY


class Excluded:
    """The exclude patterns of one root, compiled once.

    A pattern without a slash matches a name at any depth; ``**`` matches any number of folders; a pattern that begins
    with a slash is a path as the agent sees it. A match excludes everything below it too.
    """

    def __init__(self, patterns: Iterable[str], mount_path: str) -> None:
        compiled = [_expression(each, mount_path) for each in patterns]
        expressions = [each for each in compiled if each]
        self._pattern = re.compile("|".join(f"(?:{each})" for each in expressions)) if expressions else None

    def __call__(self, path: str) -> bool:
        """Return whether this path, relative to the root, matches a pattern. Its parents are not checked."""
        if path == MARKER_DIRECTORY:
            return True
        return self._pattern is not None and self._pattern.fullmatch(path) is not None

    def covers(self, path: str) -> bool:
        """Return whether the path or a folder above it matches a pattern."""
        elements = path.split("/")
        return any(self("/".join(elements[:count])) for count in range(1, len(elements) + 1))


def _expression(pattern: str, mount_path: str) -> str:
    """Return the regular expression for a pattern; an empty string if it can match nothing below this root."""
    text = pattern.removesuffix("/")
    if text.startswith("/"):
        top = mount_path.rstrip("/")
        if not text.startswith(f"{top}/"):
            return ""
        text = text[len(top) + 1 :]
    elif "/" not in text:
        text = f"**/{text}"
    return "".join(_element_expression(each) for each in _elements(text)) if text else ""


def _elements(text: str) -> list[str]:
    """Split a pattern at its slashes; every element but the last keeps its slash."""
    elements = [each for each in text.split("/") if each]
    return [each + "/" if index < len(elements) - 1 else each for index, each in enumerate(elements)]


def _element_expression(element: str) -> str:
    if element == "**/":
        return "(?:.*/)?"
    if element == "**":
        return ".*"
    result = ""
    position = 0
    while position < len(element):
        char = element[position]
        position += 1
        if char == "*":
            result += "[^/]*"
        elif char == "?":
            result += "[^/]"
        elif char == "[" and (end := element.find("]", position + 1)) > 0:
            inside = element[position:end].replace("\\", "\\\\").replace("[", "\\[")
            result += "[" + ("^" + inside[1:] if inside[:1] in "!^" else inside) + "]"
            position = end + 1
        else:
            result += re.escape(char)
    return result
