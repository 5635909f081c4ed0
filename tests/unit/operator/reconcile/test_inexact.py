"""A checkpoint that is not exactly the state of one moment: its status says so, and Events do once."""

from dataclasses import replace

import pytest
from savepoint.contract.capture_report import CaptureReport, LeftOut, RootReport
from savepoint.contract.control_protocol import Offer
from savepoint_operator.model.views import Incarnation

from tests.fakes.reconcile_harness import ReconcileHarness

ROOTS = (RootReport("/work", "Stat", "ext4", 4_000_000),)
LOCKED = LeftOut("/work/locked", "cannot read /work/locked")


async def test_files_left_out_are_shown_and_reported_once(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, original = CaptureReport(ROOTS), harness.offer

    def offer(incarnation: Incarnation, attempt: str, trigger: str) -> Offer:
        return replace(original(incarnation, attempt, trigger), capture=report)

    monkeypatch.setattr(harness, "offer", offer)
    incarnation = await harness.start(harness.pod())

    async def checkpoint(name: str) -> None:
        harness.request(name)
        await harness.settle()
        await harness.commit(incarnation)

    await checkpoint("exact")
    assert harness.checkpoint("exact")["roots"][0]["changeDetection"] == "Stat"
    assert not harness.cluster.events("StateInexact")
    report = CaptureReport(ROOTS, left_out=(LOCKED,), left_out_count=1)
    await checkpoint("first")
    await checkpoint("second")
    for name in ("first", "second"):
        assert harness.checkpoint(name)["leftOut"] == [{"path": "/work/locked", "reason": "cannot read /work/locked"}]
        assert harness.checkpoint(name)["leftOutCount"] == 1
    events = harness.cluster.events("StateInexact")
    assert len(events) == 2  # on the checkpoint and on the pod
    assert all("/work/locked" in each for each in events)
    report = CaptureReport(ROOTS, ("/work/log",), 1, (LOCKED,), 1)
    await checkpoint("third")
    assert harness.checkpoint("third")["unstable"] == ["/work/log"]
    assert len(harness.cluster.events("StateInexact")) == 4
