"""A figure is read back from its line, and what is over its goal is not met."""

import pytest

import bench.__main__ as benches
from bench.figure import Figure, of_line, table, told

GOOD, OVER = Figure("pause, longest", 38.25, "ms", 100), Figure("at rest", 70.0, "MiB", 64)


def test_a_line_is_the_figure() -> None:
    for figure in (GOOD, OVER, Figure("uploaded with 1 % changed: most", 1.01, "% of the state", 2.5)):
        assert of_line(f"{figure}\n") == figure
    for line in ("", "the others 3.1, 4.5", "pause: fast (goal: at most 100)", "step, journaled: 51 µs"):
        assert of_line(line) is None


def test_the_status_is_that_of_the_goals(capsys: pytest.CaptureFixture[str]) -> None:
    assert (told([GOOD]), told([GOOD, OVER])) == (0, 1)
    assert capsys.readouterr().out.count("goal: at most 100)") == 2


def test_the_table_says_which_is_over() -> None:
    assert [line.split()[0] for line in table([GOOD, OVER]).splitlines()] == ["met", "OVER"]


@pytest.mark.parametrize(
    ("runs", "status", "last"),
    [
        ([([GOOD], 0), ([GOOD, GOOD], 0)], 0, "3 of 3 figures meet their goals"),
        ([([GOOD], 0), ([OVER], 1)], 1, "1 of 2 figures meet their goals"),
        ([([GOOD], 0), ([], 1)], 1, "1 of 1 figures meet their goals; these benches have failed: second"),
        ([([GOOD], 0), ([], 0)], 1, "1 of 1 figures meet their goals; these benches have failed: second"),
        ([([GOOD], 1), ([GOOD], 0)], 1, "2 of 2 figures meet their goals; these benches have failed: first"),
    ],
)
def test_a_bench_without_figures_has_failed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: list[tuple[list[Figure], int]],
    status: int,
    last: str,
) -> None:
    answers = dict(zip(("first", "second"), runs, strict=True))
    monkeypatch.setattr(benches, "BENCHES", tuple(answers))
    monkeypatch.setattr(benches, "_run", answers.__getitem__)
    assert benches.main() == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last and "make demo" in lines[-2]
