"""Tests of the report of a capture in a manifest."""

import json
from dataclasses import replace
from typing import Any

import pytest
from savepoint.contract.capture_report import CaptureReport, LeftOut, RootReport
from savepoint.errors import IntegrityError
from savepoint.repository.format.capture_fields import capture_of, capture_to_wire

from tests.unit.repository.format.test_manifest import MANIFEST, opened, sealed

REPORT = CaptureReport(
    roots=(RootReport("/work", "Stat", "ext4", 4_000_000), RootReport("/tmp", "Contents", "tmpfs", None, "no stamps")),
    unstable=("/work/log",),
    unstable_count=7,
    left_out=(LeftOut("/work/secret", "cannot read it"),),
    left_out_count=1,
)


def test_a_manifest_keeps_the_report_or_none() -> None:
    assert opened(sealed()).capture is None
    assert opened(sealed(replace(MANIFEST, capture=REPORT))).capture == REPORT


@pytest.mark.parametrize(
    "change",
    [
        {"unstable": [5]},
        {"unstable": ["x"] * 21, "unstableCount": 21},
        {"unstableCount": 0},
        {"leftOutCount": -1},
        {"leftOut": [{"path": "/x"}]},
        {"leftOut": [{"path": "/x\u001b[2J", "reason": ""}]},
        {"leftOut": [{"path": "/\udc80", "reason": ""}]},
        {"leftOut": [{"path": "x" * 257, "reason": ""}]},
        {"roots": "none"},
        {"more": 1},
    ],
)
def test_a_forged_report_is_refused(change: dict[str, Any]) -> None:
    wire = json.loads(json.dumps(capture_to_wire(REPORT)))
    assert capture_of(wire, "here") == REPORT
    with pytest.raises(IntegrityError, match="here"):
        capture_of(wire | change, "here")
