"""Tests of the exclude patterns."""

import glob
import re
import time
from random import Random

import pytest
from savepoint_sidecar.files.exclude import Excluded


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("node_modules", "a/b/node_modules", True),
        ("**/node_modules", "node_modules", True),
        ("**/node_modules", "a/node_modules", True),
        ("**/node_modules", "a/node_modules2", False),
        ("*.tmp", "deep/x.tmp", True),
        ("cache/*.bin", "cache/x.bin", True),
        ("cache/*.bin", "a/cache/x.bin", False),
        ("cache/**", "cache/a/b", True),
        ("/data/cache", "cache", True),
        ("/data/cache", "a/cache", False),
        ("/other/cache", "cache", False),
        ("x[0-9]?", "x12", True),
        ("x[!0-9]?", "x12", False),
        ("a+b(c", "a+b(c", True),
        ("trailing/", "trailing", True),
        ("/data/a[[]1]/b", "a[1]/b", True),
        ("cache/**", "cache", False),
        ("cache/**", "cache/new\nline", True),
        ("*.tmp", "a.tmp\n", False),
        ("a/**/b/**/c", "a/x/b/b/y/c", True),
        ("a/**/b/**/c", "a/b/c", True),
        ("a/**/b/**/c", "a/c/b", False),
        ("**/a/b", "a/a/b", True),
        ("**/*a/b", "xa/c/a/b", True),
        ("a*b*c", "a-bbc", True),
        ("a*b*c", "a-b/c", False),
        ("a*bc", "abcbc", True),
        ("*a?c*", "xabcx", True),
        ("[+-9]x", "/x", False),
        ("a[!b]c", "a/c", False),
        ("[]]", "]", True),
        ("[!]]", "x", True),
        ("[!]]", "]", False),
        ("[a-]", "-", True),
        ("x[&&~~||[]y", "x&y", True),
        ("a\\\\b", "a\\\\b", True),
        ("**/" * 8 + "x", "x", True),
        ("\udcff*", "a/\udcffb", True),
    ],
)
def test_a_pattern_matches_a_path(pattern: str, path: str, matches: bool) -> None:
    assert Excluded((pattern,), "/data")(path) is matches


def test_an_excluded_folder_covers_its_contents() -> None:
    excluded = Excluded(("build",), "/data")
    assert excluded.covers("a/build/b/c") and not excluded.covers("a/builder")
    assert excluded(".savepoint") and not excluded("a/.savepoint")


@pytest.mark.parametrize("pattern", ["[z-a]", "[", "[!]", "**", "*", "", "..", "**/" * 12 + "x", "/data/**", "/data/["])
def test_a_pattern_that_cannot_be_evaluated_is_ignored_alone(pattern: str) -> None:
    excluded = Excluded(("*.tmp", pattern, "cache/x"), "/data")
    (ignored,) = excluded.ignored
    assert repr(pattern) in ignored
    assert excluded("a.tmp") and excluded("cache/x") and not excluded("z") and not excluded("a")


@pytest.mark.parametrize("name", ["a[b]*", "[z-a]", "**", "!x", "a?b", "new\nline", "]", "[!]", "\udcff", "a\\b"])
def test_the_escaped_name_of_a_folder_excludes_that_folder_alone(name: str) -> None:
    excluded = Excluded((f"/data/x/{glob.escape(name)}",), "/data")
    assert not excluded.ignored
    assert excluded(f"x/{name}") and excluded.covers(f"x/{name}/pack")
    assert not excluded(f"x/{name}1") and not excluded(name) and not excluded("x/a")


def _reference(pattern: list[str], path: list[str]) -> bool:
    """Match by trying everything: slow, and obviously right."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_reference(pattern[1:], path[skip:]) for skip in range(len(path) + 1)) and bool(path)
    return bool(path) and _reference_name(pattern[0], path[0]) and _reference(pattern[1:], path[1:])


def _reference_name(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern.replace("*", ".*").replace("?", "."), name) is not None


def test_random_patterns_match_as_a_search_through_all_places_does() -> None:
    random = Random(7)
    matched = 0
    for _ in range(4000):
        elements = [random.choice(["**", "a", "b", "*a", "a*", "a*b", "*", "?", "[ab]?"]) for _ in range(5)]
        elements = elements[: random.randint(2, 5)]
        elements = [each for at, each in enumerate(elements) if each != "**" or elements[at - 1 : at] != ["**"]]
        path = ["".join(random.choices("ab", k=random.randint(1, 3))) for _ in range(random.randint(1, 6))]
        excluded = Excluded(("/".join(elements),), "/data")
        if excluded.ignored or len(elements) == 1:
            continue
        for count in range(1, len(path) + 1):
            expected = _reference(elements, path[:count]) and (elements[-1] != "**" or _below(elements, path[:count]))
            assert excluded("/".join(path[:count])) is expected, (elements, path[:count])
            matched += expected
        covered = any(excluded("/".join(path[:count])) for count in range(1, len(path) + 1))
        assert excluded.covers("/".join(path)) is covered, (elements, path)
    assert matched > 300


def _below(elements: list[str], path: list[str]) -> bool:
    """Return whether a final ``**`` has at least one element to match: a folder is not inside itself."""
    return any(_reference(elements[:-1] or ["**"], path[:count]) for count in range(len(path)))


@pytest.mark.parametrize(
    "pattern", ["**/a{}/**/*b*c*d/**/x", "*{}*a*b*c*d*e*f*g", "**/f*o*l*d*e*r*/**/*r*/**/x{}", "**/" * 8 + "x{}"]
)
def test_the_time_of_a_match_does_not_explode(pattern: str) -> None:
    excluded = Excluded([pattern.format(number) for number in range(64)], "/data")
    path = "/".join(f"folder-{number}" for number in range(100))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert not excluded(path) and not excluded.covers(path)
        times.append(time.perf_counter() - start)
    assert not excluded.ignored
    assert min(times) < 0.02, "about 2 ms on an idle machine; a search through all places takes hours"
