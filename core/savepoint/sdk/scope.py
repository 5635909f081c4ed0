"""The tree of durable scopes: what is recorded below each path, and where this process stands in it.

A path is segments joined by ``/``: ``docs#0["a"]`` is the turn of key "a" of the first loop "docs" of its scope,
``reviewer#0`` a named scope, and a step ends a path: ``docs#0["a"]/summarise#0``. It does no I/O, takes no lock, and
runs no code of the agent.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from savepoint.sdk.errors import RestoreFailed
from savepoint.sdk.keys import KeySet, numbered, turn_segment


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished step: digest of its arguments and its encoded result."""

    digest: str
    text: str = field(repr=False)


@dataclass(slots=True)
class LoopRecord:
    """A loop: the keys whose turns are finished, until all of it is."""

    done: KeySet = field(default_factory=KeySet)
    finished: bool = False


class Ordinals:
    """Numbers for things of one name within one pass: the lowest that is neither taken nor in use.

    What fails gives its number back, so that a second try has the same identity as the first.
    """

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._free: dict[str, list[int]] = {}

    def take(self, name: str) -> int:
        """The number of the next thing of this name."""
        free = self._free.get(name)
        if free:
            return heapq.heappop(free)
        number = self._next.get(name, 0)
        self._next[name] = number + 1
        return number

    def give_back(self, name: str, number: int) -> None:
        """The thing did not come to be."""
        heapq.heappush(self._free.setdefault(name, []), number)

    def peek(self, name: str) -> int:
        """The number that ``take`` would give."""
        free = self._free.get(name)
        return free[0] if free else self._next.get(name, 0)


class Scope:
    """One node of the tree: the root, a turn of a loop, or a named scope."""

    __slots__ = ("children", "effects", "loops", "open", "parent", "path", "pauses", "points", "steps", "used")

    def __init__(self, path: str, parent: "Scope | None") -> None:
        self.path = path
        self.parent = parent
        self.steps: dict[str, StepRecord] = {}
        self.loops: dict[str, LoopRecord] = {}
        self.children: dict[str, Scope] = {}
        self.effects: dict[str, None] = {}  # ids of effects that were begun here, in order
        self.used = Ordinals()  # of this pass: names are prefixed by their sort
        self.open = False  # code runs in it
        self.points = 0  # explicit safe points passed in this pass
        self.pauses: dict[str, int] = {}  # step name -> points when it ran last

    def child(self, segment: str) -> "Scope":
        """The scope below this one, made if need be."""
        found = self.children.get(segment)
        if found is None:
            path = f"{self.path}/{segment}" if self.path else segment
            found = self.children[segment] = Scope(path, self)
        return found

    def at(self, path: str) -> "Scope":
        """The scope of a path that was saved; only the root is asked."""
        scope = self
        for segment in path.split("/") if path else ():
            scope = scope.child(segment)
        return scope

    def begin_pass(self) -> None:
        """The code of this scope runs, from its start."""
        self.open = True
        self.used = Ordinals()
        self.points = 0
        self.pauses = {}

    def lineage(self) -> Iterator["Scope"]:
        """This scope and those around it, the root last."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def loop(self, name: str) -> tuple[str, LoopRecord]:
        """The loop of this name that is next: one that was left unfinished goes on."""
        label = numbered(name, self.used.peek(f"loop {name}"))
        return label, self.loops.setdefault(label, LoopRecord())

    def finish_turn(self, label: str, key: str) -> list[str]:
        """The turn's key is done and what was recorded below it is dropped. Returns the effects begun there."""
        self.loops[label].done.add(key)
        return self.drop(turn_segment(label, key))

    def finish_loop(self, name: str, label: str) -> list[str]:
        """The loop collapses to one mark. Returns the effects begun in turns that were still held."""
        record = self.loops[label]
        record.finished = True
        record.done.clear()
        self.used.take(f"loop {name}")
        return [
            effect
            for segment in [item for item in self.children if item.startswith(f"{label}[")]
            for effect in self.drop(segment)
        ]

    def drop(self, segment: str) -> list[str]:
        """What is below the segment is finished. Returns the effects begun there."""
        scope = self.children.pop(segment, None)
        return [] if scope is None else list(scope.all_effects())

    def all_effects(self) -> Iterator[str]:
        """Ids of the effects begun here and below."""
        yield from self.effects
        for child in self.children.values():
            yield from child.all_effects()

    def to_plain(self) -> dict[str, Any]:
        """For the execution component; what is empty is left out."""
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
        """Take over what ``to_plain`` gave. Raises RestoreFailed."""
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
