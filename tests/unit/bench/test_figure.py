"""A figure is parsed from its line, and one above its goal is not met."""

import pytest

import bench.__main__ as benchmarks
from bench.figure import Figure, parse_line, report, table

GOOD, OVER = Figure("pause, longest", 38.25, "ms", 100), Figure("at rest", 70.0, "MiB", 64)


def test_a_figure_is_parsed_from_its_line() -> None:
    for figure in (GOOD, OVER, Figure("uploaded with 1 % changed: most", 1.01, "% of the state", 2.5)):
        assert parse_line(f"{figure}\n") == figure
    for line in ("", "the others 3.1, 4.5", "pause: fast (goal: at most 100)", "step, journaled: 51 µs"):
        assert parse_line(line) is None


def test_the_exit_status_shows_whether_every_goal_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert (report([GOOD]), report([GOOD, OVER])) == (0, 1)
    assert capsys.readouterr().out.count("goal: at most 100)") == 2


def test_the_table_marks_figures_over_their_goals() -> None:
    assert [line.split()[0] for line in table([GOOD, OVER]).splitlines()] == ["met", "OVER"]


@pytest.mark.parametrize(
    ("results", "status", "last"),
    [
        ([([GOOD], 0), ([GOOD, GOOD], 0)], 0, "3 of 3 figures meet their goals"),
        ([([GOOD], 0), ([OVER], 1)], 1, "1 of 2 figures meet their goals"),
        ([([GOOD], 0), ([], 1)], 1, "1 of 1 figures meet their goals; failed benchmarks: second"),
        ([([GOOD], 0), ([], 0)], 1, "1 of 1 figures meet their goals; failed benchmarks: second"),
        ([([GOOD], 1), ([GOOD], 0)], 1, "2 of 2 figures meet their goals; failed benchmarks: first"),
    ],
)
def test_a_benchmark_without_figures_has_failed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    results: list[tuple[list[Figure], int]],
    status: int,
    last: str,
) -> None:
    answers = dict(zip(("first", "second"), results, strict=True))
    monkeypatch.setattr(benchmarks, "BENCHMARKS", tuple(answers))
    monkeypatch.setattr(benchmarks, "_run", answers.__getitem__)
    assert benchmarks.main() == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last and "make demo" in lines[-2]
