"""A figure beside its goal: one line of a bench, and the table of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^(?P<name>.+): (?P<value>\d+\.\d\d) (?P<unit>.+) \(goal: at most (?P<goal>[\d.]+)\)$")


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it may be at most."""

    name: str
    value: float
    unit: str
    goal: float

    @property
    def met(self) -> bool:
        """Whether it is within its goal."""
        return self.value <= self.goal

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.2f} {self.unit} (goal: at most {self.goal:g})"


def of_line(line: str) -> Figure | None:
    """The figure that a bench has printed in this line, if it is one."""
    found = _LINE.match(line.rstrip())
    return Figure(found["name"], float(found["value"]), found["unit"], float(found["goal"])) if found else None


def told(figures: Sequence[Figure]) -> int:
    """Print them; the exit status of a bench: 0 when each meets its goal."""
    for figure in figures:
        print(figure, flush=True)
    return int(not all(figure.met for figure in figures))


def table(figures: Sequence[Figure]) -> str:
    """All of them, aligned."""
    rows = [(each.name, f"{each.value:.1f} {each.unit}", f"{each.goal:g}", each.met) for each in figures]
    name, found = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = [
        f"{'met ' if met else 'OVER'}  {what:<{name}}  {value:<{found}}  at most {goal}"
        for what, value, goal, met in rows
    ]
    return "\n".join(lines)
