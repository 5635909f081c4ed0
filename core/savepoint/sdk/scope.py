"""The tree of durable scopes: what is recorded below each path, and where this process is in it.

A path consists of segments joined by ``/``: ``docs#0["a"]`` is the iteration with key "a" of the first loop named
"docs" in its scope, ``reviewer#0`` is a named scope, and a step ends a path: ``docs#0["a"]/summarise#0``. The tree does
no I/O, takes no lock, and runs none of the agent's code.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from savepoint.sdk.errors import RestoreFailed
from savepoint.sdk.keys import KeySet, iteration_segment, numbered


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished step: the digest of its arguments and its encoded result."""

    digest: str
    text: str = field(repr=False)


@dataclass(slots=True)
class LoopRecord:
    """A loop: the keys of its finished iterations, or the mark that all of it is finished."""

    done: KeySet = field(default_factory=KeySet)
    finished: bool = False


class Ordinals:
    """Numbers of the calls of one name within one pass of a scope; a call gets the lowest number that is not in use.

    The number of a call that failed is used again, so that a second try has the same identity as the first.
    """

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._free: dict[str, list[int]] = {}

    def take(self, name: str) -> int:
        """Return the number of the next call of this name and mark it as used."""
        free = self._free.get(name)
        if free:
            return heapq.heappop(free)
        number = self._next.get(name, 0)
        self._next[name] = number + 1
        return number

    def give_back(self, name: str, number: int) -> None:
        """Free the number of a call that failed."""
        heapq.heappush(self._free.setdefault(name, []), number)

    def peek(self, name: str) -> int:
        """Return the number that ``take`` would return."""
        free = self._free.get(name)
        return free[0] if free else self._next.get(name, 0)


class Scope:
    """One node of the tree: the root, an iteration of a loop, or a named scope."""

    __slots__ = (
        "children",
        "effects",
        "loops",
        "open",
        "ordinals",
        "parent",
        "path",
        "safe_points",
        "safe_points_at_step",
        "steps",
    )

    def __init__(self, path: str, parent: "Scope | None") -> None:
        self.path = path
        self.parent = parent
        self.steps: dict[str, StepRecord] = {}
        self.loops: dict[str, LoopRecord] = {}
        self.children: dict[str, Scope] = {}
        self.effects: dict[str, None] = {}  # ids of the effects begun here, in order
        self.ordinals = Ordinals()  # of this pass; names are prefixed by step, loop, scope or effect
        self.open = False  # whether code runs in it
        self.safe_points = 0  # explicit safe points passed in this pass
        self.safe_points_at_step: dict[str, int] = {}  # step name -> `safe_points` when it last ran

    def child(self, segment: str) -> "Scope":
        """Return the scope below this one, creating it if necessary."""
        found = self.children.get(segment)
        if found is None:
            path = f"{self.path}/{segment}" if self.path else segment
            found = self.children[segment] = Scope(path, self)
        return found

    def descendant(self, path: str) -> "Scope":
        """Return the scope of a saved path, creating it if necessary. Called on the root only."""
        scope = self
        for segment in path.split("/") if path else ():
            scope = scope.child(segment)
        return scope

    def begin_pass(self) -> None:
        """Note that the code of this scope starts to run, from its beginning."""
        self.open = True
        self.ordinals = Ordinals()
        self.safe_points = 0
        self.safe_points_at_step = {}

    def self_and_ancestors(self) -> Iterator["Scope"]:
        """Yield this scope and those around it, the root last."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def loop(self, name: str) -> tuple[str, LoopRecord]:
        """Return label and record of the next loop of this name; an unfinished loop is returned again."""
        label = numbered(name, self.ordinals.peek(f"loop {name}"))
        return label, self.loops.setdefault(label, LoopRecord())

    def finish_iteration(self, label: str, key: str) -> list[str]:
        """Mark an iteration as finished and drop what was recorded below it. Returns the effects begun there."""
        self.loops[label].done.add(key)
        return self.drop(iteration_segment(label, key))

    def finish_loop(self, name: str, label: str) -> list[str]:
        """Replace a loop's keys by one mark. Returns the effects begun in iterations that were still recorded."""
        record = self.loops[label]
        record.finished = True
        record.done.clear()
        self.ordinals.take(f"loop {name}")
        return [
            effect
            for segment in [item for item in self.children if item.startswith(f"{label}[")]
            for effect in self.drop(segment)
        ]

    def drop(self, segment: str) -> list[str]:
        """Drop a finished scope. Returns the effects begun in it and below it."""
        scope = self.children.pop(segment, None)
        return [] if scope is None else list(scope.all_effects())

    def all_effects(self) -> Iterator[str]:
        """Yield the ids of the effects begun here and below."""
        yield from self.effects
        for child in self.children.values():
            yield from child.all_effects()

    def to_plain(self) -> dict[str, Any]:
        """Return the tree as plain JSON values, for the execution component; empty parts are left out."""
        plain: dict[str, Any] = {}
        if self.steps:
            plain["steps"] = {label: [record.digest, record.text] for label, record in self.steps.items()}
        if self.loops:
            plain["loops"] = {
                label: {"finished": True} if record.finished else record.done.to_plain()
                for label, record in self.loops.items()
            }
        below = {segment: inner for segment, child in self.children.items() if (inner := child.to_plain())}
        if below:
            plain["below"] = below
        return plain

    def load(self, plain: Mapping[str, Any]) -> None:
        """Take over what ``to_plain`` returned. Raises RestoreFailed."""
        try:
            for label, (digest, text) in plain.get("steps", {}).items():
                self.steps[label] = StepRecord(str(digest), str(text))
            for label, record in plain.get("loops", {}).items():
                finished = record.get("finished") is True
                self.loops[label] = LoopRecord(KeySet() if finished else KeySet.from_plain(record), finished)
            for segment, inner in plain.get("below", {}).items():
                self.child(segment).load(inner)
        except (TypeError, ValueError, AttributeError) as error:
            raise RestoreFailed("the saved execution state cannot be read") from error
