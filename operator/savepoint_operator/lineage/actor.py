"""One operation at a time for each agent, and a bounded number of blocking calls for each store.

Mechanism only: it knows no chain. An operation runs to its end in a task of its own; who asked waits a bounded time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from savepoint.errors import StoreUnavailable
from savepoint.repository.format.commit import Head

from savepoint_operator.lineage.open_repository import OpenRepository
from savepoint_operator.model.views import AgentRef

T = TypeVar("T")

STORE_THREADS = 8
"""Calls at a time to one store: a slow store holds up its own agents only."""


@dataclass
class Actor:
    """What is kept of one agent between operations; touched only by the operation that runs."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: OpenRepository | None = None
    head: Head | None = None


class Actors:
    """All agents' actors."""

    def __init__(self, answer_seconds: float) -> None:
        """``answer_seconds``: how long who asks waits for the store."""
        self._answer_seconds = answer_seconds
        self._actors: dict[AgentRef, Actor] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def busy(self) -> bool:
        """Whether any operation is under way."""
        return bool(self._tasks)

    async def run(self, agent: AgentRef, work: Callable[[Actor], Awaitable[T]], *, bounded: bool = True) -> T:
        """Run ``work`` alone on the agent. StoreUnavailable when it takes too long: it goes on if it has begun."""
        actor = self._actors.setdefault(agent, Actor())
        begun = False

        async def alone() -> T:
            nonlocal begun
            async with actor.lock:
                begun = True
                return await work(actor)

        task = asyncio.ensure_future(alone())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._answer_seconds if bounded else None):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"the store of agent {agent} has not answered for {self._answer_seconds:.0f} s; it is asked again"
            ) from error
        finally:
            if not begun:
                task.cancel()

    async def call(self, opened: OpenRepository, function: Callable[..., T], *arguments: object) -> T:
        """A blocking call in the threads of its store."""
        threads = self._threads.get(opened.store.name)
        if threads is None:
            threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix=f"store-{opened.store.name}")
            self._threads[opened.store.name] = threads
        return await asyncio.get_running_loop().run_in_executor(threads, lambda: function(*arguments))

    async def close(self) -> None:
        """Give up what is still under way; the store tells the next leader how far it came."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it sees it; nobody does when the caller has left
