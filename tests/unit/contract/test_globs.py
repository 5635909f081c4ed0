"""Tests of the grammar of glob patterns."""

import pytest
from savepoint.contract import globs


@pytest.mark.parametrize(
    "pattern",
    [
        "node_modules",
        "**/node_modules",
        "*.tmp",
        "cache/**",
        "a/**/b",
        "**/cache/**",
        "a]",
        "[]]",
        "[!]]",
        "[!a-z0-9_-]x",
        "[^a]",
        "a//b/",
        "a**b",
        "?",
        "*/*",
        ".git",
        "...",
        "a+b(c{d}|$^\\",
        "**/" * 8 + "x",
        "\udcff*",
    ],
)
def test_a_valid_pattern_has_no_problem(pattern: str) -> None:
    assert globs.policy_problem(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "is empty"),
        ("//", "is absolute"),
        ("/abs", "is absolute"),
        ("!keep", "begins with '!'"),
        ("a\n", "contains a control character"),
        ("a\x00b", "contains a control character"),
        ("..", "contains '.' or '..'"),
        ("a/../b", "contains '.' or '..'"),
        ("./a", "contains '.' or '..'"),
        ("*", "excludes every file"),
        ("**", "excludes every file"),
        ("***", "excludes every file"),
        ("**/", "excludes every file"),
        ("**/*", "excludes every file"),
        ("**/**", "excludes every file"),
        ("**/" * 12 + "x", "contains '**' more than 8 times"),
        ("**/a/" * 12 + "x", "contains '**' more than 8 times"),
        ("[z-a]", "contains the reversed range z-a; write a-z"),
        ("x[a-c9-0]", "contains the reversed range 9-0"),
        ("[", "contains '[' without its ']'"),
        ("[]", "contains '[' without its ']'"),
        ("[!]", "contains '[' without its ']'"),
        ("[a/b]", "contains '[' without its ']'"),
        ("ok/[ab", "contains '[' without its ']'"),
        ("[[:alpha:]]", "contains a named set"),
    ],
)
def test_a_bad_pattern_is_named_with_its_remedy(pattern: str, problem: str) -> None:
    assert globs.policy_problem(pattern).startswith(problem)
