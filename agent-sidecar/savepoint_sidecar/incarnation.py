"""One incarnation of an agent, as its sidecar lives it: it obeys the authority, serves the agent, and ends in order.

It joins the parts and owns no mechanism: checkpoints are ``checkpoint``'s, files ``capture``'s and ``barrier``'s. One
thing happens to the state at a time: whoever takes or brings back a cut holds the lock.
"""

import asyncio
import contextlib
import ctypes
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent as wire
from savepoint.contract.control import Checkpoint, CheckpointRef, Refused, Released, RequestCheckpoint, Stop, Welcome
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Unavailable
from savepoint.repository.keys import AgentKey
from savepoint.repository.repository import manifest_key

from savepoint_sidecar import barrier, cut
from savepoint_sidecar.attempt import Attempt, in_thread
from savepoint_sidecar.authority import Authority
from savepoint_sidecar.capture import Capture
from savepoint_sidecar.checkpoint import Checkpointer, Last, Taken
from savepoint_sidecar.components import prepare_stage, read_index, restore_components, sdk_components
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.quiesce import Transaction
from savepoint_sidecar.roots import Marker, Root, write_marker
from savepoint_sidecar.session import Session, Sessions
from savepoint_sidecar.socket_server import SocketServer

log = logging.getLogger(__name__)

ASK_SECONDS: Final = 5.0
"""How long an end of the agent waits for the authority's order before it makes an attempt of its own."""
AGENT_ASK_SECONDS: Final = 30.0
FENCE_SECONDS: Final = 10.0
AFTER_SECONDS: Final = 1.0
"""Of the two seconds that a sidecar has when the grace is spent: for the last checkpoint."""
RELEASE_SECONDS: Final = 0.8
"""And for the release."""
FINISH_SECONDS: Final = 300.0
CONNECT_WAIT_SECONDS: Final = 120.0
BASELINE_SECONDS: Final = 60.0
BASELINE_BYTES: Final = 256 << 20
SDK_NAME: Final = "sdk"


@dataclass(frozen=True)
class Terms:
    """What an incarnation is started with."""

    roots: tuple[Root, ...]
    stage: Path
    socket_path: Path
    pod_uid: str
    grace_seconds: float
    cut_sequence: int | None = None
    """The cut that the roots hold, if no process of the agent has run since: the first connect need not look."""
    features: tuple[str, ...] = (wire.FEATURE_REATTACH,)


@dataclass(frozen=True)
class Edges:
    """Time and chance, handed in."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    clock_ns: Callable[[], int]
    random_id: Callable[[], str]
    """32 hexadecimal digits."""


class Incarnation:
    """Started once, ended once."""

    def __init__(self, authority: Authority, terms: Terms, edges: Edges, failpoints: Failpoints | None = None) -> None:
        self._authority, self._terms, self._edges = authority, terms, edges
        self._failpoints = failpoints or Failpoints()
        self.sessions = Sessions(edges.random_id)
        self._server = SocketServer(terms.socket_path, self.sessions, self)
        self._lock = asyncio.Lock()
        self._attempt: Attempt | None = None
        self._known_attempts: dict[str, None] = {}
        self._asked: dict[str, asyncio.Future[Checkpoint]] = {}
        self._from_agent: dict[str, RequestCheckpoint] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._welcome: Welcome | None = None
        self._newer: Welcome | None = None
        self._fenced = ""
        self._stopped = ""
        self._completed = False
        self._files_at_cut = False
        self._last = Last()
        self._ending: asyncio.Task[Any] | None = None
        self._ends_at: float | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> Welcome:
        """Learn who we are, know the cut, and serve the agent's socket. Raises what the authority or the store says."""
        welcome = self._welcome = await self._authority.welcome()
        self._key = AgentKey(bytes.fromhex(welcome.key))
        await asyncio.to_thread(prepare_stage, self._terms.stage)
        self.capture = Capture(self._terms.roots, welcome.policy.exclude, self._edges.clock_ns)
        self.checkpointer = Checkpointer(
            self._authority,
            welcome,
            self.capture,
            self._terms.stage,
            now=self._edges.now,
            failpoints=self._failpoints,
        )
        self.checkpointer.sdk = await asyncio.to_thread(self._knows_sdk, welcome.run)
        if welcome.parent is not None:
            await self._load(welcome)
            self._files_at_cut = welcome.parent.sequence == self._terms.cut_sequence
            if self._files_at_cut:
                await self._learn()
        self._spawn(self._obey())
        self._spawn(self._watch_fence())
        await self._server.start()
        return welcome

    def heartbeat(self) -> tuple[bool, str]:
        """Whether an SDK is connected, and what it is at."""
        session = self.sessions.live
        return session is not None, (session.execution.detail or session.execution.step or "") if session else ""

    def attempts(self) -> tuple[tuple[str, str], ...]:
        """The attempt in flight and its stage, to be restated after a reconnect."""
        return ((self._attempt.id, self._attempt.stage),) if self._attempt is not None else ()

    def begin_end(self) -> None:
        """The pod is stopping: ask the agent for its last flush and start copying. May be told twice."""
        if self._ending is not None or self._welcome is None:
            return
        self._ends_at = self._edges.monotonic() + self._terms.grace_seconds + AFTER_SECONDS
        self._ending = self._spawn(self._end_attempts())

    async def end(self) -> bool:
        """The agent has exited: finish the last checkpoint, release, let go. Whether the state is all stored."""
        self.begin_end()
        assert self._ending is not None and self._ends_at is not None
        left = max(AFTER_SECONDS, self._ends_at - self._edges.monotonic())
        self._last.ended.set()
        stored = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                stored = await asyncio.shield(self._ending)
        if not stored and self._attempt is not None:
            self._attempt.interrupt(Unavailable("the grace period ended before this checkpoint did"))
        if self._welcome is not None and not self._stopped:
            message = "" if stored else "The last checkpoint was not finished in time; the one before it counts."
            with contextlib.suppress(TimeoutError, SavepointError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._authority.released(Released(self._welcome.epoch, self._completed, message))
        await self.close()
        return stored

    async def close(self) -> None:
        """Stop everything at once."""
        await self._server.close()
        await self._authority.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what the agent asks (socket_server.Host) -------------------------------------------------------------------

    async def bring_back(self, session: Session) -> wire.Connected:
        """Let files and documents stand at the last cut, and hand over the documents."""
        assert self._welcome is not None
        welcome = self._welcome
        if self._completed:
            raise RefusedError("The run is completed; the next pod of this agent starts the next one.", "Completed")
        if session.hello.reattach:
            return self._connected(session, None, ())
        await self._wait_for_attempt()
        async with self._lock:
            await self._rebase()
            known = self.checkpointer.sdk
            await asyncio.to_thread(self._know_sdk, welcome.run)
            current = self.checkpointer.cut
            if not known and (current is None or not sdk_components(current.manifest)):
                came_back = welcome.parent if self.sessions.connects == 1 else None
                await self._take_baseline(session)
                return self._connected(session, restored_of(came_back, "Restored"), ())
            if current is None:
                log.warning("there was no checkpoint before the crash: files are as the crash left them")
                return self._connected(session, None, ())
            at_cut, self._files_at_cut = self._files_at_cut, False
            left = await asyncio.to_thread(read_index, self._terms.stage, current.ref.sequence) if at_cut else None
            with current.reader(self._authority.blobs, self._key) as reader:
                if not at_cut:
                    mended = await in_thread(None, lambda: barrier.bring_back(reader, self.capture))
                    log.info("files are at %s: %s", current.ref.name, mended)
                label = str(current.ref.sequence)
                components = left
                if components is None:
                    components = await in_thread(None, lambda: restore_components(reader, self._terms.stage, label))
            log.info("agent connected (pid %d): epoch %d, at %s", session.hello.pid, welcome.epoch, current.ref.name)
            how = "Restarted" if left is None else "Restored"
            return self._connected(session, restored_of(current.ref, how), components)

    def asked(self, session: Session, request: wire.CheckpointRequest) -> None:
        """The agent wants a checkpoint."""
        ask = RequestCheckpoint(request.request, "Agent", request.reason)
        self._from_agent[ask.request] = ask
        self._spawn(self._forward(session, ask))

    async def finish(self, session: Session, flush: wire.Flush) -> str:
        """The last checkpoint of the run, and its completion."""
        self._require_hold()
        self._interrupt("the agent has finished its run")
        async with self._lock:
            attempt = await self._own_attempt("Finish", FINISH_SECONDS)
            attempt.completed = True
            last = Last(flush=flush)
            last.ended.set()
            taken = await self._take(attempt, session, last)
        self._completed = True
        log.info("the run is completed (%s)", taken)
        current = self.checkpointer.cut
        return current.ref.name if current is not None and taken == "Ready" else ""

    def ended(self, session: Session) -> None:
        """The agent's process is gone; an attempt that had not captured everything ends with it."""
        log.info("agent disconnected (pid %d)", session.hello.pid)

    def status(self) -> dict[str, Any]:
        """Of this incarnation."""
        assert self._welcome is not None
        current = self.checkpointer.cut
        return {
            "agent": self._welcome.agent,
            "epoch": self._welcome.epoch,
            "connected": self.sessions.live is not None,
            "authority": "connected" if self._authority.connected else "lost",
            "lastCheckpoint": current.ref.name if current else None,
            "lastCheckpointTime": current.ref.time if current else None,
        }

    # -- what the authority says ----------------------------------------------------------------------------------

    async def _obey(self) -> None:
        async for order in self._authority.orders():
            match order:
                case Checkpoint():
                    asked = self._asked.pop(order.request, None)
                    if asked is not None and not asked.done():
                        self._known_attempts[order.attempt] = None
                        asked.set_result(order)
                    elif order.attempt not in self._known_attempts and self._ending is None:
                        self._known_attempts[order.attempt] = None
                        self._spawn(self._ordered(order))
                case Refused():
                    self._refused(order)
                case Stop():
                    self._stopped = f"{order.reason}: {order.message}"
                    log.error("this incarnation is stopped: %s", self._stopped)
                    self._interrupt(order.message)
                    self._fence(order.message)
                case Welcome():
                    self._newer = order
            while len(self._known_attempts) > 64:
                del self._known_attempts[next(iter(self._known_attempts))]

    async def _ordered(self, order: Checkpoint) -> None:
        ends_at = self._edges.monotonic() + order.deadline_seconds
        attempt = Attempt(order.attempt, order.trigger, ends_at, self._edges.monotonic, request=order.request)
        self._from_agent.pop(order.request, None)
        with contextlib.suppress(SavepointError):
            async with self._lock:
                if not self._completed:
                    await self._rebase()
                    await self._take(attempt, self.sessions.live)

    def _refused(self, refused: Refused) -> None:
        asked = self._asked.pop(refused.request, None)
        if asked is not None and not asked.done():
            asked.set_exception(RefusedError(refused.message, refused.reason))
            return
        ask = self._from_agent.get(refused.request)
        session = self.sessions.live
        if ask is None or session is None:
            return
        if refused.reason == "AttemptInFlight":
            self._spawn(self._forward(session, ask, after_attempt=True))
            return
        del self._from_agent[refused.request]
        session.send(wire.Result("", "Failed", ask.request, reason=refused.reason, message=refused.message))

    async def _forward(self, session: Session, ask: RequestCheckpoint, *, after_attempt: bool = False) -> None:
        """Pass on what the agent asked for; its request waits out a short absence of the authority."""
        try:
            self._require_hold()
            if after_attempt:
                async with self._lock:
                    pass
                await asyncio.sleep(0.1)
            async with asyncio.timeout(AGENT_ASK_SECONDS):
                await self._authority.request_checkpoint(ask)
        except (SavepointError, TimeoutError) as error:
            self._from_agent.pop(ask.request, None)
            reason = getattr(error, "code", getattr(error, "reason", Unavailable.reason))
            message = str(error) or "the operator cannot be reached; the agent runs on, and may ask again"
            session.send(wire.Result("", "Failed", ask.request, reason=reason, message=message))

    # -- parts ----------------------------------------------------------------------------------------------------

    async def _take(self, attempt: Attempt, session: Session | None, last: Last | None = None) -> Taken:
        """Run one attempt; the lock is held."""
        self._require_hold()
        self._attempt = attempt
        try:
            taken = await self.checkpointer.take(attempt, session, last)
        finally:
            self._attempt = None
            await asyncio.to_thread(_trim)
        if taken == "Ready":
            await self._committed()
        return taken

    async def _committed(self) -> None:
        current = self.checkpointer.cut
        assert current is not None and self._welcome is not None
        welcome, sequence = self._welcome, current.ref.sequence
        marker = Marker(welcome.namespace, welcome.agent, self._terms.pod_uid, welcome.epoch, sequence, "ready")
        for root in self._terms.roots:
            try:
                await asyncio.to_thread(write_marker, root, marker)
            except OSError as error:
                log.warning("the marker in %s could not be raised: %s", root.mount_path, error)
        log.info("checkpoint %s is committed (sequence %d)", current.ref.name, sequence)
        await self._authority.prepare_reads((manifest_key(current.ref.manifest.name), *current.keys()))

    async def _take_baseline(self, session: Session) -> None:
        """Before an agent with the SDK touches its files for the first time: what a crash before its first checkpoint
        goes back to. It waits in connect() meanwhile, so a large state is left to the first checkpoint of its own."""
        if not self._terms.roots:
            return
        size = await asyncio.to_thread(self.capture.file_bytes)
        if size > BASELINE_BYTES:
            log.warning("no checkpoint is taken before the start: the files have %d bytes", size)
            return
        try:
            attempt = await self._ordered_attempt("Agent", BASELINE_SECONDS)
            last = Last(flush=wire.Flush(session.id, "", ()))
            last.ended.set()
            await self._take(attempt, session, last)
        except (SavepointError, TimeoutError) as error:
            log.warning("no checkpoint could be taken before the start (%s)", error or "no order came in time")

    async def _end_attempts(self) -> bool:
        """The last checkpoint, from the news that the pod stops to the agent's end and beyond."""
        if self._completed or self._stopped:
            return self._completed
        session = self.sessions.live
        try:
            if session is None:
                self.checkpointer.require_values(False)
        except Unavailable as error:
            log.info("no last checkpoint: %s", error)
            return False
        flushing = self._spawn(self._last_flush(session)) if session is not None else None
        self._interrupt("the pod is stopping")
        try:
            async with self._lock:
                await self._rebase()
                if session is None and not self._last.ended.is_set() and self._terms.roots:
                    with contextlib.suppress(SavepointError):  # the one after the end counts
                        await self._take(await self._own_attempt("Shutdown", self._terms.grace_seconds), None)
                attempt = await self._own_attempt("Shutdown", self._terms.grace_seconds)
                await self._take(attempt, session, self._last)
        except SavepointError as error:
            if not self._completed:
                log.warning("no last checkpoint: %s", error)
            return self._completed
        finally:
            if flushing is not None:
                flushing.cancel()
        return True

    async def _last_flush(self, session: Session) -> None:
        transaction = Transaction(self._edges.random_id(), self._terms.grace_seconds)
        session.begin(transaction)
        session.send(wire.Stopping(transaction.id, self._terms.grace_seconds))
        try:
            self._last.flush = await transaction.flush(self._terms.grace_seconds)
            transaction.resume()
        except SavepointError as error:
            log.warning("the agent did not hand over its state at the end: %s", error)

    async def _own_attempt(self, trigger: str, seconds: float) -> Attempt:
        """An attempt that the authority orders, or our own when it cannot be asked; it may be left for later."""
        try:
            attempt = await self._ordered_attempt(trigger, seconds)
        except (SavepointError, TimeoutError) as error:
            log.warning("no order for the last checkpoint (%s); it is made all the same", error or "no answer")
            ends_at = self._edges.monotonic() + seconds
            attempt = Attempt(self._edges.random_id(), trigger, ends_at, self._edges.monotonic)
        if self._ends_at is not None:
            attempt.ends_at = min(attempt.ends_at, self._ends_at)
        attempt.deferrable = True
        return attempt

    async def _ordered_attempt(self, trigger: str, seconds: float) -> Attempt:
        """Ask for an order and wait for it; Refused, Unavailable or TimeoutError if there is none."""
        request = self._edges.random_id()
        future = self._asked[request] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(min(ASK_SECONDS, seconds / 4)):
                await self._authority.request_checkpoint(RequestCheckpoint(request, trigger))
                order = await future
        finally:
            self._asked.pop(request, None)
        return Attempt(order.attempt, trigger, self._edges.monotonic() + seconds, self._edges.monotonic)

    async def _load(self, welcome: Welcome) -> None:
        assert welcome.parent is not None
        parent = welcome.parent
        await self._authority.prepare_reads((manifest_key(parent.manifest.name),))
        blobs = self._authority.blobs
        loaded = await asyncio.to_thread(lambda: cut.load(blobs, self._key, welcome.namespace, welcome.agent, parent))
        self.checkpointer.rebase(loaded)
        await self._authority.prepare_reads((manifest_key(parent.manifest.name), *loaded.keys()))

    async def _rebase(self) -> None:
        """Go on from what the authority last said is the newest checkpoint, if that is not ours."""
        newer, self._newer = self._newer, None
        current = self.checkpointer.cut
        if newer is None or newer.parent is None:
            return
        if current is None or newer.parent.sequence > current.ref.sequence:
            await self._load(newer)
            for root in self._terms.roots:
                self.capture.tables[root.name] = type(self.capture.tables[root.name])()

    async def _learn(self) -> None:
        current = self.checkpointer.cut
        assert current is not None
        with current.reader(self._authority.blobs, self._key) as reader:
            await asyncio.to_thread(lambda: barrier.learn(reader, self.capture))

    async def _wait_for_attempt(self) -> None:
        """An attempt that had not captured everything dies with the process it captured; a sealed one may commit."""
        if self._attempt is not None and not self._attempt.sealed:
            self._interrupt("the agent has connected anew while it was captured")
        try:
            async with asyncio.timeout(CONNECT_WAIT_SECONDS):
                async with self._lock:
                    pass
        except TimeoutError:
            self._interrupt("the agent has started anew and cannot wait for this checkpoint any longer")

    def _interrupt(self, why: str) -> None:
        if self._attempt is not None and not self._attempt.sealed:
            self._attempt.interrupt(Unavailable(why))

    def _require_hold(self) -> None:
        if self._stopped:
            raise RefusedError(self._stopped, self._stopped.partition(":")[0])

    async def _watch_fence(self) -> None:
        """What the SDK offers is refused while nothing proves that this node is not cut off."""
        while True:
            await asyncio.sleep(1.0)
            cut_off = self._authority.silent_seconds > FENCE_SECONDS
            if cut_off and not self._fenced:
                self._fence("neither the operator nor the cluster's API server has been heard for 10 s")
            elif not cut_off and self._fenced and not self._stopped:
                self._fenced = ""
                if self.sessions.live is not None:
                    self.sessions.live.send(wire.Unfenced())

    def _fence(self, message: str) -> None:
        self._fenced = message
        if self.sessions.live is not None:
            self.sessions.live.send(wire.Fenced(message))

    def _knows_sdk(self, run: int) -> bool:
        """Whether an agent with the SDK has connected in this run, here: told by a file that outlives the sidecar."""
        try:
            return (self._terms.stage / wire.STAGE_SIDECAR / SDK_NAME).read_text() == str(run)
        except OSError:
            return False

    def _know_sdk(self, run: int) -> None:
        self.checkpointer.sdk = True
        (self._terms.stage / wire.STAGE_SIDECAR / SDK_NAME).write_text(str(run))

    def _connected(
        self, session: Session, restored: wire.Restored | None, components: tuple[wire.Component, ...]
    ) -> wire.Connected:
        assert self._welcome is not None
        if self._fenced:
            session.send(wire.Fenced(self._fenced))
        return wire.Connected(
            session.id,
            self._welcome.agent,
            self._welcome.namespace,
            self._welcome.epoch,
            self._welcome.run,
            restored,
            components,
            self._terms.features,
        )

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def restored_of(ref: CheckpointRef | None, how: str) -> wire.Restored | None:
    """What came back, as the agent is told."""
    return None if ref is None else wire.Restored(ref.name, ref.number, ref.sequence, ref.time, how)


def _trim() -> None:
    """Give freed memory back: the buffers of an attempt are large and seldom needed."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
