"""The report of a capture of files: how changes are noticed, what may not be of one moment, what is left out. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

PATHS_MAX: Final = 20
"""Number of paths that are named; the counts are always whole."""
ROOTS_MAX: Final = 96
TEXT_MAX: Final = 256
"""Characters of a path or reason; a longer one is cut."""
_CONTROL: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
"""Characters that are never shown. Which other characters are printable depends on the version of Unicode."""


@dataclass(frozen=True)
class RootReport:
    """One state folder, and how changes of its files are noticed."""

    path: str  # as the agent sees it
    change_detection: str  # a vocabulary.ChangeDetection, never Auto
    file_system: str
    granularity_nanoseconds: int | None = None  # step of the time stamps; None if it was not probed
    reason: str = ""  # why contents are compared, or why a stat is trusted that proves nothing


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not in the checkpoint, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class CaptureReport:
    """The way in which the files of a checkpoint differ from the state at one moment."""

    roots: tuple[RootReport, ...] = ()
    unstable: tuple[str, ...] = ()  # the first ones
    unstable_count: int = 0
    left_out: tuple[LeftOut, ...] = ()  # the first ones
    left_out_count: int = 0

    @property
    def is_exact(self) -> bool:
        """True if nothing is left out and nothing is known to have changed while it was read."""
        return not self.unstable_count and not self.left_out_count


def capture_report(roots: Iterable[RootReport], unstable: Iterable[str], left_out: Mapping[str, str]) -> CaptureReport:
    """Return the report. ``left_out`` holds reasons by path; paths are as the agent sees them."""
    moved = sorted(set(unstable) - left_out.keys())
    missing = sorted(left_out)
    return CaptureReport(
        roots=tuple(roots)[:ROOTS_MAX],
        unstable=tuple(printable(path) for path in moved[:PATHS_MAX]),
        unstable_count=len(moved),
        left_out=tuple(LeftOut(printable(path), printable(left_out[path])) for path in missing[:PATHS_MAX]),
        left_out_count=len(missing),
    )


def printable(text: str) -> str:
    """Return the text with escapes for what cannot be shown, such as bytes that are not UTF-8, cut to TEXT_MAX."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[: TEXT_MAX + 1])
    return shown if len(shown) <= TEXT_MAX else f"{shown[: TEXT_MAX - 1]}…"


def report_problem(report: CaptureReport) -> str | None:
    """Return why the report cannot be shown, or None."""
    if len(report.roots) > ROOTS_MAX or max(len(report.unstable), len(report.left_out)) > PATHS_MAX:
        return f"its capture names more than {ROOTS_MAX} state folders or {PATHS_MAX} paths"
    if report.unstable_count < len(report.unstable) or report.left_out_count < len(report.left_out):
        return "its capture counts fewer paths than it names"
    if any((each.granularity_nanoseconds or 0) < 0 for each in report.roots):
        return "its capture has a negative granularity"
    texts = [each.path for each in report.roots] + [each.change_detection for each in report.roots]
    texts += [text for each in report.roots for text in (each.file_system, each.reason)]
    texts += [*report.unstable, *(text for each in report.left_out for text in (each.path, each.reason))]
    if any(len(text) > TEXT_MAX or _CONTROL.search(text) for text in texts):
        return f"its capture has a text of more than {TEXT_MAX} characters, or one that cannot be shown"
    return None
