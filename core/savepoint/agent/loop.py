"""Durable loops: an iterator over items that skips what is finished and makes every turn a safe point.

The iterator knows its place in the tree of scopes; locking, safe points and the current scope are the agent's.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from threading import get_ident
from typing import Final, Generic, Protocol, TypeVar

from savepoint.agent.errors import LoopKeyRepeated
from savepoint.agent.keys import KeySet, key_text, turn_segment
from savepoint.agent.scope import Scope

T = TypeVar("T")


class LoopHost(Protocol):
    """What a loop needs of its agent."""

    def loop_opened(self, loop: "Loop[T]") -> None:
        """The loop runs; an older iterator over the same loop is taken over."""

    def turn_finished(self, loop: "Loop[T]", key: str) -> None:
        """Note that the key's turn is done."""

    def loop_finished(self, loop: "Loop[T]") -> None:
        """Note that no key is left."""

    def turn_point(self) -> None:
        """The safe point between two turns."""


class Position:
    """The scope in which code runs now: a context variable, so that tasks and copied contexts inherit it."""

    def __init__(self, root: Scope) -> None:
        self._root: Final = root
        self._variable: ContextVar[Scope] = ContextVar("savepoint_scope", default=root)

    def now(self) -> Scope:
        """The innermost scope that is still open: a loop that was left by break or by an exception is not."""
        scope = self._variable.get()
        while scope.parent is not None and (scope.holder is None or scope.holder() is None):
            scope = scope.parent
        return scope

    def move(self, scope: Scope) -> None:
        """From here on code runs in this scope."""
        self._variable.set(scope)


class Loop(Generic[T]):
    """The iterator that ``Agent.loop`` returns."""

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
        self.turns = 0  # finished, in all passes
        self._host = host
        self._position = position
        self._items = items
        self._iterator: Iterator[T] | None = None
        self._key = key
        self._turn_key = ""
        self._seen = KeySet()

    def __iter__(self) -> "Loop[T]":
        return self

    def __next__(self) -> T:
        if self.taken_over:
            raise RuntimeError(
                f"loop {self.name!r} was entered a second time in one scope while this iterator was in use: "
                f"give the loops different names"
            )
        self.thread = get_ident()
        if self._iterator is None:
            self._host.loop_opened(self)
            if self.record.finished:
                raise StopIteration
            self._iterator = iter(self._items)
        elif self.turn is not None:
            self._leave()
        else:
            raise StopIteration
        self._host.turn_point()
        for item in self._iterator:
            text = key_text(item if self._key is None else self._key(item), f"loop {self.name!r}")
            if text in self._seen:
                raise LoopKeyRepeated(
                    f"loop {self.name!r} met the key {text} twice: give each item a key of its own with key="
                )
            self._seen.add(text)
            if text not in self.record.done:
                self._enter(text)
                return item
        self._host.loop_finished(self)
        raise StopIteration

    def describe(self) -> str:
        """``docs 42 of 90``."""
        done = len(self.record.done) + (self.turn is not None)
        return f"{self.name} {done}" + (f" of {self.total}" if self.total is not None else "")

    def _enter(self, key: str) -> None:
        turn = self.scope.child(turn_segment(self.label, key))
        turn.begin_pass()
        turn.holder = weakref.ref(self)
        self.turn, self._turn_key = turn, key
        self._position.move(turn)

    def _leave(self) -> None:
        assert self.turn is not None
        self.turn.holder = None
        self._host.turn_finished(self, self._turn_key)
        self.turn = None
        self._position.move(self.scope)
