"""Glob patterns of ``spec.state.exclude`` and ``--exclude``: their grammar, and expressions that match in linear time.

``*`` matches within a name, ``?`` one character, ``[a-z]`` and ``[!a-z]`` one of a set; ``**`` as a whole element
matches any number of folders. There is no escape character (``[*]`` is a literal star), no negation and no ``{a,b}``.
"""

import re
from collections.abc import Sequence
from typing import Final

RECURSIVE: Final = "**"
MAX_RECURSIVE: Final = 8
"""Number of ``**`` that one pattern may have."""


class GlobError(ValueError):
    """A pattern that cannot be evaluated. The message is a fact about the pattern and the remedy."""


def policy_problem(pattern: str) -> str:
    """Return why a policy must not contain this pattern, and the remedy; an empty text if it may."""
    if pattern.startswith("/"):
        return "is absolute; leave out the leading '/': patterns are relative to the root of each volume"
    return problem(pattern)


def problem(pattern: str) -> str:
    """Return why a person cannot have meant this pattern, and the remedy; an empty text if it is valid."""
    if pattern.startswith("!"):
        return "begins with '!', but a pattern cannot re-include files; list only what to exclude"
    if re.search(r"[\x00-\x1f\x7f]", pattern):
        return "contains a control character, such as a line break; remove it"
    try:
        expression(split(pattern))
    except GlobError as error:
        return str(error)
    return ""


def split(pattern: str, *, anchored: bool = False) -> tuple[str, ...]:
    """Return the elements of a relative pattern. One without a slash matches at any depth, unless it is ``anchored``.

    Raises:
        GlobError: The pattern is empty, can match nothing, matches everything, or has too many ``**``.
    """
    text = pattern.removesuffix("/")
    elements = [each for each in text.split("/") if each]
    if not elements:
        raise GlobError("is empty; remove it")
    if "." in elements or ".." in elements:
        raise GlobError("contains '.' or '..' as a folder, which matches nothing; write the path without it")
    if "/" not in text and not anchored:
        elements.insert(0, RECURSIVE)
    fixed = [each for each in elements if each != RECURSIVE]
    if len(fixed) <= 1 and not "".join(fixed).strip("*"):
        raise GlobError("excludes every file; name the files or folders to exclude")
    if elements.count(RECURSIVE) > MAX_RECURSIVE:
        raise GlobError(f"contains '**' more than {MAX_RECURSIVE} times; one '**' matches any number of folders")
    return tuple(each for at, each in enumerate(elements) if each != RECURSIVE or elements[at - 1 : at] != [RECURSIVE])


def expression(elements: Sequence[str]) -> str:
    """Return the regular expression of a pattern, which a folder's path matches up to its last character.

    It must be followed by an end of the path or of an element. Everything before a ``**`` is an atomic group: the first
    place where it matches is as good as any later one, so that no combination of places is ever tried.

    Raises:
        GlobError: A character set is not closed, empty, or has a reversed range.
    """
    result, group, searching = "", "", False
    for index, element in enumerate(elements):
        if element != RECURSIVE:
            group += element_expression(element) + ("" if index == len(elements) - 1 else "/")
            continue
        result += _place(group, searching)
        group, searching = "", True
    if searching and not group:
        return f"{result}.+"
    return result + (f"(?:[^/]++/)*?{group}" if searching else group)


def element_expression(element: str) -> str:
    """Return the atomic expression of one element, which matches a whole name. Raises GlobError."""
    parts, position = [""], 0
    while position < len(element):
        char = element[position]
        position += 1
        if char == "*":
            parts.append("")
        elif char == "?":
            parts[-1] += "[^/]"
        elif char == "[":
            text, position = _character_set(element, position)
            parts[-1] += text
        else:
            parts[-1] += re.escape(char)
    first, *others = parts
    if not others:
        return f"(?>{first}(?![^/]))"
    searched = "".join(f"(?>[^/]*?{part})" for part in others[:-1] if part)
    return f"(?>{first}{searched}[^/]*{others[-1]}(?![^/]))"


def _place(group: str, searching: bool) -> str:
    if not group:
        return ""
    return f"(?>(?:[^/]++/)*?{group})" if searching else group


def _character_set(element: str, start: int) -> tuple[str, int]:
    """Return the expression of the character set whose content begins at ``start``, and the position after it."""
    negated = element[start : start + 1] in ("!", "^")
    first = start + negated
    end = element.find("]", first + 1)
    if end < 0:
        raise GlobError("contains '[' without its ']'; write [[] for the character itself")
    members, position = element[first:end], 0
    if "[:" in members:
        raise GlobError("contains a named set such as [:alpha:]; write its characters, such as [a-zA-Z]")
    result = ""
    while position < len(members):
        if members[position + 1 : position + 2] == "-" and position + 2 < len(members):
            low, high = members[position], members[position + 2]
            if low > high:
                raise GlobError(f"contains the reversed range {low}-{high}; write {high}-{low}")
            result += f"{re.escape(low)}-{re.escape(high)}"
            position += 3
        else:
            result += re.escape(members[position])
            position += 1
    return f"(?:(?!/)[{'^' if negated else ''}{result}])", end + 1
