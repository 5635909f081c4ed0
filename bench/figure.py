"""A figure with its goal: one line of a benchmark's output, and the table of all figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^(?P<name>.+): (?P<value>\d+\.\d\d) (?P<unit>.+) \(goal: at most (?P<goal>[\d.]+)\)$")


@dataclass(frozen=True)
class Figure:
    """A measured value and the highest value that meets the goal."""

    name: str
    value: float
    unit: str
    goal: float

    @property
    def met(self) -> bool:
        """True if the value meets the goal."""
        return self.value <= self.goal

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.2f} {self.unit} (goal: at most {self.goal:g})"


def parse_line(line: str) -> Figure | None:
    """Return the figure that a benchmark printed in this line, or None."""
    found = _LINE.match(line.rstrip())
    return Figure(found["name"], float(found["value"]), found["unit"], float(found["goal"])) if found else None


def report(figures: Sequence[Figure]) -> int:
    """Print the figures; return the benchmark's exit status: 0 if every figure meets its goal."""
    for figure in figures:
        print(figure, flush=True)
    return int(not all(figure.met for figure in figures))


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as aligned lines."""
    rows = [(each.name, f"{each.value:.1f} {each.unit}", f"{each.goal:g}", each.met) for each in figures]
    name, found = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = [
        f"{'met ' if met else 'OVER'}  {what:<{name}}  {value:<{found}}  at most {goal}"
        for what, value, goal, met in rows
    ]
    return "\n".join(lines)
