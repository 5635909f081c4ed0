"""Tests of what a capture reports: how changes are noticed, what is left out, and what may not be of one moment."""

import os
import time
from pathlib import Path

import pytest
from savepoint.contract.capture_report import PATHS_MAX, TEXT_MAX, CaptureReport, report_problem
from savepoint.contract.control_protocol import PolicyTerms
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.change_detector import ChangeDetector
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.open_files import RootFiles
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Signature

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.capture.test_unstable_files import fuzzy, paused
from tests.unit.sidecar.checkpoints import finish, writer_of

BY_CONTENT = ChangeDetector("tmpfs", by_stat=False, reason="a test")
SECOND_NS = 1_000_000_000


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "files").mkdir()
    return Root("files", "/data", tmp_path / "files")


@pytest.fixture
def capture(root: Root) -> Capture:
    return Capture([root], (), time.time_ns)


def reported(capture: Capture, *drafts: Draft) -> CaptureReport:
    report = capture.report(drafts)
    assert report is not None and report_problem(report) is None
    return report


def test_a_quiet_pause_reports_only_how_changes_are_noticed(root: Root, capture: Capture, tmp_path: Path) -> None:
    (root.path / "file").write_text("x")
    report = reported(capture, paused(capture, MemoryStore(), tmp_path))
    detector = capture.detector(root)
    assert report.is_exact and not report.unstable and not report.left_out
    (shown,) = report.roots
    assert (shown.path, shown.file_system) == ("/data", detector.file_system)
    assert shown.change_detection == ("Stat" if detector.by_stat else "Contents")
    assert Capture([], (), time.time_ns).report([]) is None


def test_what_moves_in_a_pause_is_unstable(root: Root, capture: Capture, tmp_path: Path) -> None:
    for name in ("grows", "goes", "stays"):
        (root.path / name).write_text("x")

    def act() -> None:
        (root.path / "grows").write_text("xy")
        (root.path / "goes").rename(root.path / "comes")

    draft = paused(capture, MemoryStore(), tmp_path, act)
    report = reported(capture, draft)
    assert report.unstable == ("/data/comes", "/data/goes", "/data/grows") and report.unstable_count == 3


def test_what_moves_while_a_running_agent_is_read_is_unstable(root: Root, capture: Capture, tmp_path: Path) -> None:
    (root.path / "file").write_text("x")
    (root.path / "quiet").write_text("x")
    draft, _ = fuzzy(capture, tmp_path)
    (root.path / "file").write_text("longer")
    capture.note_moved([draft])
    assert reported(capture, draft).unstable == ("/data/file",)


def test_entries_that_cannot_be_captured_are_named_with_the_reason(
    root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(root.path / "pipe")
    for name in ("locked", "good", "other"):
        (root.path / name).write_text("x")
    original = RootFiles._open_node

    def fail(self: RootFiles, node: object) -> int:
        if getattr(node, "path", "") == "locked":
            raise PermissionError(13, "denied")
        return original(self, node)  # type: ignore[arg-type]

    monkeypatch.setattr(RootFiles, "_open_node", fail)
    draft, _ = fuzzy(capture, tmp_path)
    report = reported(capture, draft)
    assert [each.path for each in report.left_out] == ["/data/locked", "/data/pipe"]
    assert "cannot read /data/locked" in report.left_out[0].reason and "named pipe" in report.left_out[1].reason


def test_few_paths_are_named_and_all_are_counted(root: Root, capture: Capture, tmp_path: Path) -> None:
    (root.path / "file").write_text("x")
    for number in range(PATHS_MAX + 5):
        os.mkfifo(root.path / f"pipe{number:03}")
    report = reported(capture, fuzzy(capture, tmp_path)[0])
    assert len(report.left_out) == PATHS_MAX and report.left_out_count == PATHS_MAX + 5


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"a\xff", "/data/a\\udcff"), (b"a\nb\x1b[31m", "/data/a\\nb\\x1b[31m"), ("é\u202e".encode(), "/data/é\\u202e")],
)
def test_names_that_cannot_be_shown_are_escaped(
    root: Root, capture: Capture, tmp_path: Path, name: bytes, shown: str
) -> None:
    (root.path / "file").write_text("x")
    os.mkfifo(os.fsencode(root.path) + b"/" + name)
    report = reported(capture, fuzzy(capture, tmp_path)[0])
    assert [each.path for each in report.left_out] == [shown]


def test_long_names_are_cut(root: Root, capture: Capture, tmp_path: Path) -> None:
    folder = root.path / ("d" * 200) / ("e" * 200)
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    (left_out,) = reported(capture, fuzzy(capture, tmp_path)[0]).left_out
    assert len(left_out.path) == TEXT_MAX and left_out.path.endswith("…")


def test_a_policy_may_trust_the_stat_and_change_its_mind(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("savepoint_sidecar.capture.capture.probe", lambda _: BY_CONTENT)
    capture = Capture([root], (), time.time_ns)
    assert not capture.detector(root).by_stat
    capture.apply(PolicyTerms(change_detection="Stat"))
    detector = capture.detector(root)
    assert detector.by_stat and "the policy trusts the stat" in str(detector)
    (shown,) = reported(capture).roots
    assert (shown.change_detection, shown.reason) == ("Stat", "the policy trusts the stat (a test)")
    capture.apply(PolicyTerms())
    assert reported(capture).roots[0].change_detection == "Contents"


def test_a_stat_that_only_the_policy_trusts_does_not_show_holes_and_is_racy_for_long() -> None:
    proven = ChangeDetector("ext4", by_stat=True, granularity_ns=4_000_000)
    assert proven.trusting_stat() is proven and proven.shows_holes
    trusted = ChangeDetector("nfs", by_stat=False, reason="a test").trusting_stat()
    assert not trusted.shows_holes
    written = Signature(1, 5 * SECOND_NS, 5 * SECOND_NS, 1)
    assert trusted.is_racy(written, 8 * SECOND_NS) and not proven.is_racy(written, 8 * SECOND_NS)


def test_with_a_trusted_stat_an_unchanged_file_is_not_read_again(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("savepoint_sidecar.capture.capture.probe", lambda _: BY_CONTENT)
    now = time.time_ns() + 60 * SECOND_NS  # the file is old enough for its stat to count
    capture = Capture([root], (), lambda: now)
    (root.path / "file").write_text("x")
    opened: list[str] = []
    original = RootFiles._open_node

    def count(self: RootFiles, node: object) -> int:
        opened.append(getattr(node, "path", ""))
        return original(self, node)  # type: ignore[arg-type]

    monkeypatch.setattr(RootFiles, "_open_node", count)
    store = MemoryStore()
    for terms, is_read in ((PolicyTerms(change_detection="Stat"), False), (PolicyTerms(), True)):
        capture.apply(terms)
        writer = writer_of(store)
        drafts = capture.precopy(writer)
        capture.store(writer, drafts, None)
        parent = finish(writer)
        capture.committed(drafts)
        opened.clear()
        writer = writer_of(store, parent)
        capture.precopy(writer)
        writer.abort()
        assert bool(opened) is is_read, terms
