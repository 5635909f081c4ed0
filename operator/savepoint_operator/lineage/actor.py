"""Runs one operation at a time for each agent, and a bounded number of blocking calls for each store.

It does not depend on what an operation does. An operation runs to its end in a task of its own; its caller waits only
for a bounded time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from savepoint.errors import StoreUnavailable
from savepoint.repository.format.commit import ChainRecord

from savepoint_operator.lineage.open_repository import OpenRepository
from savepoint_operator.model.views import AgentRef

T = TypeVar("T")

STORE_THREADS = 8
"""Concurrent calls to one store, so that a slow store delays only its own agents."""


@dataclass
class Actor:
    """The state of one agent between operations; only the running operation touches it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: OpenRepository | None = None
    head: ChainRecord | None = None


class Actors:
    """The actors of all agents and the threads of all stores."""

    def __init__(self, answer_seconds: float) -> None:
        """Start without actors; a caller of ``run`` waits ``answer_seconds`` for the store."""
        self._answer_seconds = answer_seconds
        self._actors: dict[AgentRef, Actor] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def busy(self) -> bool:
        """True while any operation is in progress."""
        return bool(self._tasks)

    async def run(self, agent: AgentRef, work: Callable[[Actor], Awaitable[T]], *, bounded: bool = True) -> T:
        """Run ``work`` exclusively for the agent and return its result.

        Raises StoreUnavailable if it takes too long; work that has begun then continues in the background.
        """
        actor = self._actors.setdefault(agent, Actor())
        begun = False

        async def exclusively() -> T:
            nonlocal begun
            async with actor.lock:
                begun = True
                return await work(actor)

        task = asyncio.ensure_future(exclusively())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._answer_seconds if bounded else None):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"the store of agent {agent} has not answered for {self._answer_seconds:.0f} s; the request is retried"
            ) from error
        finally:
            if not begun:
                task.cancel()

    async def call(self, opened: OpenRepository, function: Callable[..., T], *arguments: object) -> T:
        """Make a blocking call in the threads of the repository's store and return its result."""
        threads = self._threads.get(opened.store.name)
        if threads is None:
            threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix=f"store-{opened.store.name}")
            self._threads[opened.store.name] = threads
        return await asyncio.get_running_loop().run_in_executor(threads, lambda: function(*arguments))

    async def close(self) -> None:
        """Cancel operations in progress; the next leader learns from the store how far they got."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the task is not awaited once its caller has timed out
