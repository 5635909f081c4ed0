"""Tests of the exclude patterns."""

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
    ],
)
def test_a_pattern_matches_a_path(pattern: str, path: str, matches: bool) -> None:
    assert Excluded((pattern,), "/data")(path) is matches


def test_an_excluded_folder_covers_its_contents() -> None:
    excluded = Excluded(("build",), "/data")
    assert excluded.covers("a/build/b/c") and not excluded.covers("a/builder")
    assert excluded(".savepoint") and not excluded("a/.savepoint")
