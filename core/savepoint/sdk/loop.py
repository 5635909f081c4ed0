"""Durable loops: an iterator that skips finished items and makes every iteration boundary a safe point.

The iterator knows its place in the tree of scopes; locks, safe points and the current scope belong to its host.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from threading import get_ident
from typing import Final, Generic, Protocol, TypeVar

from savepoint.sdk.errors import LoopKeyRepeated
from savepoint.sdk.keys import KeySet, iteration_segment, key_text
from savepoint.sdk.scope import Scope

T = TypeVar("T")


class LoopHost(Protocol):
    """The calls that a loop makes to its agent."""

    def loop_opened(self, loop: "Loop[T]") -> None:
        """Note that the loop starts to run. An older iterator over the same loop is superseded."""

    def iteration_started(self, loop: "Loop[T]") -> None:
        """Note that an iteration begins."""

    def iteration_finished(self, loop: "Loop[T]", key: str) -> None:
        """Record that the iteration with this key is finished."""

    def iteration_boundary(self, loop: "Loop[T]") -> None:
        """Pass the safe point between two iterations."""

    def loop_finished(self, loop: "Loop[T]") -> None:
        """Record that all iterations are finished."""

    def loop_closed(self, loop: "Loop[T]") -> None:
        """Note that the loop does not run any more: finished, or left by break or an exception."""


class Position:
    """The scope in which code runs now: a context variable, so that tasks and copied contexts inherit it."""

    def __init__(self, root: Scope) -> None:
        self._root: Final = root
        self._variable: ContextVar[Scope] = ContextVar("savepoint_scope", default=root)

    def current(self) -> Scope:
        """Return the innermost open scope; a loop that was left by break or an exception is not open."""
        scope = self._variable.get()
        while scope.parent is not None and not scope.open:
            scope = scope.parent
        return scope

    def move(self, scope: Scope) -> None:
        """Make ``scope`` the one in which code runs."""
        self._variable.set(scope)


class Loop(Generic[T]):
    """One pass over a durable loop; ``iterate`` is the iterator that ``Agent.loop`` returns."""

    def __init__(
        self,
        host: LoopHost,
        position: Position,
        name: str,
        items: Iterable[T],
        key: Callable[[T], object] | None,
    ) -> None:
        self.name = name
        self.scope = position.current()
        self.label, self.record = self.scope.loop(name)
        self.iteration: Scope | None = None  # the open iteration
        self.thread = get_ident()
        self.superseded = False
        self.total = len(items) if isinstance(items, Sized) else None
        self._host = host
        self._position = position
        self._items = items
        self._key = key
        self._seen = KeySet()

    def iterate(self) -> Iterator[T]:
        """Yield the items whose iterations are to run. A generator, so that dropping it closes the loop at once."""
        try:
            self._host.loop_opened(self)
            if self.record.finished:
                return
            self._host.iteration_boundary(self)
            for item in self._items:
                key = self._new_key(item)
                if key in self.record.done:
                    continue
                self._begin_iteration(key)
                yield item
                self._finish_iteration(key)
                self._host.iteration_boundary(self)
            self._host.loop_finished(self)
        finally:
            self._close_iteration()
            self._host.loop_closed(self)

    def supersede(self) -> None:
        """Close this pass, because another pass over the same loop begins."""
        self.superseded = True
        self._close_iteration()

    def describe(self) -> str:
        """Return the position as text: ``docs 42 of 90``."""
        done = len(self.record.done) + (self.iteration is not None)
        return f"{self.name} {done}" + (f" of {self.total}" if self.total is not None else "")

    def _close_iteration(self) -> None:
        if self.iteration is not None:
            self.iteration.open = False
            self.iteration = None

    def _new_key(self, item: T) -> str:
        key = key_text(item if self._key is None else self._key(item), f"loop {self.name!r}")
        if key in self._seen:
            raise LoopKeyRepeated(
                f"loop {self.name!r} has two items with the key {key}: give each item its own key with key="
            )
        self._seen.add(key)
        return key

    def _begin_iteration(self, key: str) -> None:
        self.thread = get_ident()
        self._host.iteration_started(self)
        self.iteration = self.scope.child(iteration_segment(self.label, key))
        self.iteration.begin_pass()
        self._position.move(self.iteration)

    def _finish_iteration(self, key: str) -> None:
        self.thread = get_ident()
        if self.superseded or self.iteration is None:
            raise RuntimeError(
                f"loop {self.name!r} was entered a second time in one scope while this iterator was in use: "
                f"give the loops different names"
            )
        self.iteration.open = False
        self._host.iteration_finished(self, key)
        self.iteration = None
        self._position.move(self.scope)
