"""The report of the capture of files, as fields of an AgentCheckpoint's status and as the text of an Event. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from savepoint.contract.capture_report import CaptureReport, RootReport

FIELDS: Final = ("roots", "unstable", "unstableCount", "leftOut", "leftOutCount")
_NAMED: Final = 3


def shown(report: CaptureReport) -> dict[str, Any]:
    """Return the fields of the status. A field without content is missing."""
    fields: dict[str, Any] = {
        "roots": [_root(each) for each in report.roots],
        "unstable": list(report.unstable),
        "unstableCount": report.unstable_count,
        "leftOut": [{"path": each.path, "reason": each.reason} for each in report.left_out],
        "leftOutCount": report.left_out_count,
    }
    return {name: value for name, value in fields.items() if value}


def news(status: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return what an Event says about a checkpoint; empty if its parent's status said so already.

    Which files change while they are read differs each time, so only the first checkpoint with any is news. A file
    that is left out is news unless the parent named it.

    Args:
        status: The checkpoint's status.
        before: The status of its parent; empty if there is none.
    """
    texts = []
    known = {each["path"] for each in before.get("leftOut") or ()}
    left_out, count = status.get("leftOut") or (), status.get("leftOutCount") or 0
    if any(each["path"] not in known for each in left_out) or count > (before.get("leftOutCount") or 0):
        reasons = _listed([f"{each['path']} ({each['reason'].rstrip('.')})" for each in left_out], count)
        texts.append(f"Left out: {reasons}.")
    count = status.get("unstableCount") or 0
    if count and not before.get("unstableCount"):
        texts.append(f"Changed while it was captured: {_listed(status.get('unstable') or (), count)}.")
    return " ".join(texts)


def _root(root: RootReport) -> dict[str, Any]:
    fields = {
        "path": root.path,
        "changeDetection": root.change_detection,
        "fileSystem": root.file_system,
        "granularityNanoseconds": root.granularity_nanoseconds,
        "reason": root.reason,
    }
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _listed(texts: Sequence[str], count: int) -> str:
    more = count - min(len(texts), _NAMED)
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more else "")
