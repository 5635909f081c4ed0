"""The report of a capture, as status and as the text of an Event."""

from dataclasses import replace

import pytest
from savepoint.contract.capture_report import CaptureReport, LeftOut, RootReport
from savepoint_operator.rules.attempt import offer_problem
from savepoint_operator.rules.status.capture_status import FIELDS, news, shown

from tests.unit.operator.rules.test_status import offer

REPORT = CaptureReport(
    roots=(RootReport("/work", "Contents", "tmpfs", None, "time stamps prove nothing there"),),
    unstable=("/work/log",),
    unstable_count=1,
    left_out=tuple(LeftOut(f"/work/{number}", "cannot read it.") for number in range(4)),
    left_out_count=40,
)


def test_the_status_shows_the_report_without_what_is_empty() -> None:
    status = shown(REPORT)
    assert tuple(status) == FIELDS
    assert status["roots"] == [
        {
            "path": "/work",
            "changeDetection": "Contents",
            "fileSystem": "tmpfs",
            "reason": "time stamps prove nothing there",
        }
    ]
    assert status["leftOut"][0] == {"path": "/work/0", "reason": "cannot read it."}
    assert set(shown(CaptureReport(REPORT.roots))) == {"roots"}


def test_news_is_reported_once() -> None:
    status = shown(REPORT)
    assert news(status, {}) == (
        "Left out: /work/0 (cannot read it), /work/1 (cannot read it), /work/2 (cannot read it) and 37 more. "
        "Changed while it was captured: /work/log."
    )
    assert news(status, status) == ""
    assert news(shown(CaptureReport(REPORT.roots)), {}) == ""


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (replace(REPORT, unstable=("/work/other",)), ""),
        (replace(REPORT, left_out_count=41), "Left out: "),
        (replace(REPORT, left_out=(LeftOut("/work/new", "x"),), left_out_count=1), "Left out: /work/new (x)."),
        (replace(REPORT, left_out=REPORT.left_out[:1], left_out_count=1), ""),
    ],
)
def test_only_other_files_are_news(later: CaptureReport, expected: str) -> None:
    text = news(shown(later), shown(REPORT))
    assert text.startswith(expected) if expected else text == ""


@pytest.mark.parametrize(
    "report",
    [
        replace(REPORT, unstable=("/x\n",)),
        replace(REPORT, unstable=("x" * 257,)),
        replace(REPORT, unstable=("/x",) * 21, unstable_count=21),
        replace(REPORT, left_out_count=1),
        replace(REPORT, roots=(RootReport("/work", "Stat", "ext4", -1),)),
        replace(REPORT, roots=REPORT.roots * 97),
    ],
)
def test_an_offer_with_an_invalid_report_is_refused(report: CaptureReport) -> None:
    assert offer_problem(offer(capture=REPORT)) is None
    assert "its capture" in (offer_problem(offer(capture=report)) or "")
