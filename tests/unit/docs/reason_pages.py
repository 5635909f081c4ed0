"""Derived parts of docs/reasons: the index, and the title and "Seen in" line of every page.

Both come from ``savepoint.contract.reasons.Reason``. ``python -m tests.unit.docs.reason_pages`` writes them and
leaves the rest of a page, which is written by hand, unchanged.
"""

from pathlib import Path

from savepoint.contract.vocabulary import Reason

FOLDER = Path(__file__).parents[3] / "docs" / "reasons"
INDEX = FOLDER / "README.md"
COMMAND = "python -m tests.unit.docs.reason_pages"
MEANING = "## What it means\n\n"
REMEDY = "\n\n## What to do\n\n"


def header(reason: Reason) -> str:
    """Return a page's title and "Seen in" line, up to and including the blank line before its first section."""
    seen_in = reason.seen_in.replace("Event CheckpointFailed", "Event [CheckpointFailed](CheckpointFailed.md)")
    return f"# {reason}\n\nSeen in: {seen_in}.\n\n"


def index() -> str:
    """Return the text of README.md: one row for each reason, in alphabetical order."""
    rows = [
        f"| [{reason}]({reason}.md) | {reason.meaning} | {reason.seen_in} |"
        for reason in sorted(Reason, key=lambda reason: reason.value.lower())
    ]
    return "\n".join(
        [
            "# Reasons",
            "",
            "Every reason that a Savepoint condition, Event, refusal or error carries has a page here.",
            "",
            f"This table is generated from `savepoint.contract.reasons.Reason` by `{COMMAND}`.",
            "",
            "| Reason | Meaning | Seen in |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def write() -> None:
    """Write the index, and the header of every page that exists."""
    INDEX.write_text(index())
    for reason in Reason:
        page = FOLDER / f"{reason}.md"
        if page.exists():
            page.write_text(header(reason) + MEANING + page.read_text().partition(MEANING)[2])


if __name__ == "__main__":
    write()
