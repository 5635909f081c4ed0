"""A manifest's field ``capture``: the report of the capture of files. It converts only."""

from typing import Any

from savepoint.contract.capture_report import CaptureReport, LeftOut, RootReport, report_problem
from savepoint.repository.format.canonical import Fields


def capture_to_wire(report: CaptureReport) -> dict[str, Any]:
    """Return the JSON object of a report."""
    return {
        "roots": [
            {
                "path": each.path,
                "changeDetection": each.change_detection,
                "fileSystem": each.file_system,
                "granularityNanoseconds": each.granularity_nanoseconds,
                "reason": each.reason,
            }
            for each in report.roots
        ],
        "unstable": list(report.unstable),
        "unstableCount": report.unstable_count,
        "leftOut": [{"path": each.path, "reason": each.reason} for each in report.left_out],
        "leftOutCount": report.left_out_count,
    }


def capture_of(value: object, where: str) -> CaptureReport:
    """Return the report in a JSON object; IntegrityError naming ``where`` if it is not one."""
    fields = Fields(value, where)
    report = CaptureReport(
        roots=tuple(_root_of(each, where) for each in fields.array("roots")),
        unstable=fields.texts("unstable"),
        unstable_count=fields.integer("unstableCount"),
        left_out=tuple(_left_out_of(each, where) for each in fields.array("leftOut")),
        left_out_count=fields.integer("leftOutCount"),
    )
    fields.end()
    problem = report_problem(report)
    if problem:
        fields.refuse(f"has an invalid report: {problem}")
    return report


def _root_of(value: object, where: str) -> RootReport:
    fields = Fields(value, where)
    root = RootReport(
        path=fields.text("path"),
        change_detection=fields.text("changeDetection"),
        file_system=fields.text("fileSystem"),
        granularity_nanoseconds=fields.integer_or_none("granularityNanoseconds"),
        reason=fields.text("reason"),
    )
    fields.end()
    return root


def _left_out_of(value: object, where: str) -> LeftOut:
    fields = Fields(value, where)
    left_out = LeftOut(path=fields.text("path"), reason=fields.text("reason"))
    fields.end()
    return left_out
