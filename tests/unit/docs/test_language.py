"""Words and phrases that must not come into the project's English again, and what to write instead.

It reads the pages, the texts of the chart and the CRDs, and in Python files the docstrings, comments, messages and test
names. It finds phrases, not meaning: a text that passes can still be hard to read.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = ("core", "operator", "agent-sidecar", "cli", "e2e", "bench", "tests")
TEXTS = ("docs", "crds", "charts")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
TEXT_FILES = (".md", ".yaml", ".tpl", ".txt")
THIS_FILE = Path(__file__)

PHRASES: Final = {
    # archaisms
    r"whoever": "the user who, the caller that",
    r"nobody": "no process, no user; or the passive: is not read",
    r"anew": "again, from scratch",
    r"in vain": "without effect, unsuccessfully",
    r"as ever": "as before, as usual",
    r"to and fro": "back and forth",
    r"lest": "so that … does not",
    r"whence|thence|hither|thither|whereof|wherein|thereof|hitherto": "a plain sentence",
    r"aught|naught": "anything, nothing",
    r"unasked": "without a request",
    r"for ever": "forever",
    # idioms that are not English, or not technical English
    r"(?:goes|go|gone|going|went) on(?! (?:the|a|an|top|its|disk|standard)\b)": "continue, proceed; what happens",
    r"runs? on(?= (?:without|with it|until|while|meanwhile)\b|[.;,)])": "keeps running",
    r"line of life": "checkpoint history",
    r"last word": "decides",
    r"for good": "permanently",
    r"(?:let|lets|letting) (?:it |them |him )?go": "release",
    r"at hand": "available",
    r"(?:may|might|can) pass(?=[.,;:)]|$| (?:by itself|away|soon)\b)": "is transient",
    r"as (?:it|they) stands?": "as it is, verbatim, unchanged",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"all the same": "anyway, still",
    r"in good order": "successfully, cleanly",
    r"becomes? of": "is done with, happens to",
    r"(?:brings?|bringing|brought) (?:\w+ )?back": "restore, return",
    r"(?:comes?|came|coming) back": "return, reconnect, restart, be restored",
    r"(?:hands?|handed|handing) (?:it |them )?over": "pass, return, give",
    r"under way": "in progress",
    r"whose turn": "which … is next",
    r"lineage goes": "the history continues",
    r"(?:stands?|stood) (?:at|in(?! for)|beside|below|there|where|twice)": "is at, is in",
    r"(?:stands?|stood) still": "is paused, stops",
    r"says? nothing": "is silent, does not answer",
    r"said again": "repeated",
    r"(?:is|are|was|were) away": "is unreachable",
    r"else than": "other than",
    r"so many (?!\w+ that)": "the given number of",
    r"by guess": "by guessing",
    r"takes? (?:it|this|that|them) for": "mistake for, treat as",
    # negation and inversion
    r"(?<!there )(?:is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|later\b|earlier\b|larger\b|smaller\b"
    r"|greater\b|older\b|newer\b|shorter\b|better\b|worse\b|different\b)[a-z-]+": "is not a …, has no …",
    r"(?<!there )(?:is|are|was|were) (?-i:none)(?! of)": "does not exist, there is no …, is not one",
    r"(?:is|are|was|were) none of": "is not one of",
    # metaphors for which the field has a word
    r"clerks?": "background worker",
    r"doors?": "adapter",
    r"lanes?": "worker",
    r"strangers?": "unauthenticated peers",
    r"misfortunes?": "faults",
    r"chronicles?": "history",
    r"(?:last|newest|latest|checkpoint's) cut": "checkpoint",
    r"(?:each|every|next|another|between two) looks?(?! (?:at|up|like|into)\b)": "reconcile pass, check",
    r"wish(?:es)?": "request",
    r"ill(?!-)": "invalid, faulty, unhealthy",
    r"asked for": "requested",
    r"(?:an|one|each|every|this|the|last|next) asks?": "request",
    r"somebody(?: else's)?": "another user, another process",
    r"of ours": "of Savepoint",
    r"(?:is|are|was|were|be) gone": "does not exist, has ended, was deleted",
    r"puts? (?:\w+ )?right": "correct, repair",
    r"aside(?=[.,;)])": "except …",
    r"heard|hears?": "received",
    r"believed": "trusted, accepted",
    r"told(?! to\b)": "reported, notified",
    r"(?:what|that|who|which|it) tells? (?:of|that|what|how|us)": "reports, shows",
}
"""Regular expression (whole words, any case) → what to write instead."""

OPENINGS: Final = {
    "Whether": "Return whether …; for a property: True if …",
    "Who": "a noun phrase: The pod that …",
    "Whose": "a noun phrase: The agent that …",
    "What": "a noun phrase or an imperative: Return …",
    "Which": "a noun phrase: The … that",
    "How": "a noun phrase: Seconds that …, Number of …",
    "Where": "a noun phrase: Path of …, Position of …",
    "When": "a noun phrase: Time at which …",
    "Why": "a noun phrase: Reason for …",
    "Nobody": "say who does what",
    "As": "a noun phrase or an imperative",
    "Until": "Wait until …",
    "Of": "a noun phrase that names the thing",
    "By": "a noun phrase that names the thing",
}
"""First word of a docstring → what to open it with instead."""


class Text(NamedTuple):
    """A piece of English in a file."""

    line: int
    kind: str
    text: str


def _texts_of_python(source: str) -> Iterator[Text]:
    module = ast.parse(source)
    documentation = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in documentation:
                yield Text(node.lineno, "docstring", node.value)
            elif " " in node.value.strip():
                yield Text(node.lineno, "message", node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Text(node.lineno, "name", node.name.replace("_", " "))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], "comment", token.string.lstrip("# "))


def _texts(path: Path) -> Iterator[Text]:
    source = path.read_text()
    if path.suffix == ".py":
        yield from _texts_of_python(source)
    else:
        yield from (Text(number, "text", line) for number, line in enumerate(source.splitlines(), 1))


PATTERN = re.compile("|".join(rf"\b(?P<p{number}>{phrase})\b" for number, phrase in enumerate(PHRASES)), re.IGNORECASE)
INSTEAD = tuple(PHRASES.values())


def findings(text: Text) -> Iterator[tuple[str, str]]:
    """Yield every phrase of the list in the text, with what to write instead."""
    for match in PATTERN.finditer(" ".join(text.text.split())):
        number = int(str(match.lastgroup).removeprefix("p"))
        yield match.group(), INSTEAD[number]
    first = re.match(r"\w+", text.text.strip())
    if text.kind == "docstring" and first and first.group() in OPENINGS:
        yield f"{first.group()} …", OPENINGS[first.group()]


def _report(paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        found += [
            f"{name}:{text.line}: {phrase!r} in the {text.kind}: write {instead!r}"
            for text in _texts(path)
            for phrase, instead in findings(text)
        ]
    return found


@pytest.mark.parametrize("folder", PYTHON)
def test_code_is_in_plain_english(folder: str) -> None:
    found = _report([path for path in sorted((ROOT / folder).rglob("*.py")) if path != THIS_FILE])
    assert not found, f"{len(found)} phrases to replace:\n" + "\n".join(found)


@pytest.mark.parametrize("folder", TEXTS)
def test_texts_are_in_plain_english(folder: str) -> None:
    found = _report([path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in TEXT_FILES])
    assert not found, f"{len(found)} phrases to replace:\n" + "\n".join(found)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_in_plain_english(page: str) -> None:
    found = _report([ROOT / page])
    assert not found, f"{len(found)} phrases to replace:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "text", "phrases"),
    [
        ("comment", "whoever asks gets nothing", ["whoever"]),
        ("message", "RunAs is no uid", ["is no uid"]),
        ("message", "there is no checkpoint; it is no longer needed, and is no more than a copy", []),
        ("message", "the agent goes on; the record goes on the stack", ["goes on"]),
        ("docstring", "Whether it may commit.", ["Whether …"]),
        ("docstring", "Return whether it may commit.", []),
        ("comment", "When it ends, the lock is released.", []),
        ("message", "the fault may pass; the test may pass an argument", ["may pass"]),
        ("name", "test the pod fills up until it is ill", ["ill"]),
    ],
)
def test_the_list_finds(kind: str, text: str, phrases: list[str]) -> None:
    assert [phrase for phrase, _ in findings(Text(1, kind, text))] == phrases
