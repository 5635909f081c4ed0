"""Durable loops: an iterator over items that skips what is finished and makes every turn a safe point.

The iterator knows its place in the tree of scopes; locking, safe points and the current scope are the agent's.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from threading import get_ident
from typing import Final, Generic, Protocol, TypeVar

from savepoint.sdk.errors import LoopKeyRepeated
from savepoint.sdk.keys import KeySet, key_text, turn_segment
from savepoint.sdk.scope import Scope

T = TypeVar("T")


class LoopHost(Protocol):
    """What a loop needs of its agent."""

    def loop_opened(self, loop: "Loop[T]") -> None:
        """The loop runs; an older iterator over the same loop is taken over."""

    def turn_finished(self, loop: "Loop[T]", key: str) -> None:
        """Note that the key's turn is done."""

    def loop_finished(self, loop: "Loop[T]") -> None:
        """Note that no key is left."""

    def loop_left(self, loop: "Loop[T]") -> None:
        """Finished, or left by break or by an exception."""

    def turn_entered(self, loop: "Loop[T]") -> None:
        """A turn begins."""

    def turn_point(self, loop: "Loop[T]") -> None:
        """The safe point between two turns."""


class Position:
    """The scope in which code runs now: a context variable, so that tasks and copied contexts inherit it."""

    def __init__(self, root: Scope) -> None:
        self._root: Final = root
        self._variable: ContextVar[Scope] = ContextVar("savepoint_scope", default=root)

    def now(self) -> Scope:
        """The innermost scope that is still open: a loop that was left by break or by an exception is not."""
        scope = self._variable.get()
        while scope.parent is not None and not scope.open:
            scope = scope.parent
        return scope

    def move(self, scope: Scope) -> None:
        """From here on code runs in this scope."""
        self._variable.set(scope)


class Loop(Generic[T]):
    """One pass over a durable loop; ``turns`` is the iterator that ``Agent.loop`` returns."""

    def __init__(
        self,
        host: LoopHost,
        position: Position,
        name: str,
        items: Iterable[T],
        key: Callable[[T], object] | None,
    ) -> None:
        self.name = name
        self.scope = position.now()
        self.label, self.record = self.scope.loop(name)
        self.turn: Scope | None = None
        self.thread = get_ident()
        self.taken_over = False
        self.total = len(items) if isinstance(items, Sized) else None
        self._host = host
        self._position = position
        self._items = items
        self._key = key
        self._seen = KeySet()

    def turns(self) -> Iterator[T]:
        """The items whose turns are to run. A generator: that it is left is known the moment it is dropped."""
        try:
            self._host.loop_opened(self)
            if self.record.finished:
                return
            self._host.turn_point(self)
            for item in self._items:
                key = self._new_key(item)
                if key in self.record.done:
                    continue
                self._enter(key)
                yield item
                self._leave(key)
                self._host.turn_point(self)
            self._host.loop_finished(self)
        finally:
            self._close_turn()
            self._host.loop_left(self)

    def take_over(self) -> None:
        """Another pass over the same loop begins: this one is out of the game."""
        self.taken_over = True
        self._close_turn()

    def describe(self) -> str:
        """``docs 42 of 90``."""
        done = len(self.record.done) + (self.turn is not None)
        return f"{self.name} {done}" + (f" of {self.total}" if self.total is not None else "")

    def _close_turn(self) -> None:
        if self.turn is not None:
            self.turn.open = False
            self.turn = None

    def _new_key(self, item: T) -> str:
        key = key_text(item if self._key is None else self._key(item), f"loop {self.name!r}")
        if key in self._seen:
            raise LoopKeyRepeated(
                f"loop {self.name!r} met the key {key} twice: give each item a key of its own with key="
            )
        self._seen.add(key)
        return key

    def _enter(self, key: str) -> None:
        self.thread = get_ident()
        self._host.turn_entered(self)
        self.turn = self.scope.child(turn_segment(self.label, key))
        self.turn.begin_pass()
        self._position.move(self.turn)

    def _leave(self, key: str) -> None:
        self.thread = get_ident()
        if self.taken_over or self.turn is None:
            raise RuntimeError(
                f"loop {self.name!r} was entered a second time in one scope while this iterator was in use: "
                f"give the loops different names"
            )
        self.turn.open = False
        self._host.turn_finished(self, key)
        self.turn = None
        self._position.move(self.scope)
