"""Matches paths against the policy's exclude patterns. Pure; paths are relative to the state root."""

import re
from collections.abc import Iterable
from itertools import pairwise

from savepoint.contract import globs
from savepoint.contract.names import MARKER_DIRECTORY


class Excluded:
    """The exclude patterns of one root, compiled once.

    A pattern without a slash matches a name at any depth; ``**`` matches any number of folders; a pattern that begins
    with a slash is a path as the agent sees it. A match excludes everything below it too. A pattern that cannot be
    evaluated excludes nothing: an operator of another version may have let it pass, and capturing too much loses
    nothing. ``ignored`` names such patterns with the reasons.
    """

    def __init__(self, patterns: Iterable[str], mount_path: str) -> None:
        names: list[str] = []
        paths: list[str] = []
        ignored: list[str] = []
        for pattern in patterns:
            try:
                elements = _elements(pattern, mount_path)
                if len(elements) == 2 and elements[0] == globs.RECURSIVE:
                    names.append(globs.element_expression(elements[1]))
                elif elements:
                    paths.append(globs.expression(elements))
            except globs.GlobError as error:
                ignored.append(f"exclude pattern {pattern!r} {error}")
        self.ignored = tuple(ignored)
        self._name, self._path = _any_of(names), _any_of(paths)

    def __call__(self, path: str) -> bool:
        """Return whether this path, relative to the root, matches a pattern. Its parents are not checked."""
        if path == MARKER_DIRECTORY:
            return True
        if self._name is not None and self._name.fullmatch(path, path.rfind("/") + 1):
            return True
        return self._path is not None and self._path.fullmatch(path) is not None

    def covers(self, path: str) -> bool:
        """Return whether the path or a folder above it matches a pattern."""
        if path == MARKER_DIRECTORY or path.startswith(f"{MARKER_DIRECTORY}/"):
            return True
        if self._path is not None and self._path.match(path):
            return True
        if self._name is None:
            return False
        starts = [0, *(found.end() for found in re.finditer("/", path)), len(path) + 1]
        return any(self._name.fullmatch(path, start, end - 1) for start, end in pairwise(starts))


def pattern_problem(pattern: str, mount_paths: Iterable[str]) -> str:
    """Return why the pattern of a person on a laptop is invalid for these roots; an empty text if it is valid."""
    if not pattern.startswith("/"):
        return globs.problem(pattern)
    inside = [mount_path for mount_path in mount_paths if pattern.startswith(f"{mount_path.rstrip('/')}/")]
    if not inside:
        return "is outside every state folder, so that it excludes nothing; name a path inside one of them"
    try:
        for mount_path in inside:
            globs.expression(_elements(pattern, mount_path))
    except globs.GlobError as error:
        return str(error)
    return ""


def _elements(pattern: str, mount_path: str) -> tuple[str, ...]:
    """Return the elements of a pattern below this root; none if it can match nothing there. Raises GlobError."""
    if not pattern.startswith("/"):
        return globs.split(pattern)
    top = mount_path.rstrip("/")
    return globs.split(pattern[len(top) + 1 :], anchored=True) if pattern.startswith(f"{top}/") else ()


def _any_of(expressions: list[str]) -> re.Pattern[str] | None:
    """Return the pattern of paths that match one of the expressions up to the end of an element."""
    return re.compile(f"(?:{'|'.join(expressions)})(?![^/])", re.DOTALL) if expressions else None
