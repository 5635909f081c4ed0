"""``savepoint.connect()``: from the environment to a connected agent, and the one place that reads the environment.

It keeps the rule of one session a process, follows forks, and keeps the stream of orders open: its end is how the
sidecar knows that the process is gone. A sidecar that was restarted is attached to again, without touching any state.
"""

import logging
import os
import platform
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final
from uuid import uuid4

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.names import ENV_REQUIRED, ENV_SOCKET, ENV_STAGE
from savepoint.errors import SavepointError, Unavailable
from savepoint.sdk.agent import Agent, stage_of
from savepoint.sdk.agent_session import AgentSession, unmanaged
from savepoint.sdk.client import Client, OrderStream, SocketLink
from savepoint.sdk.errors import SessionInUse
from savepoint.sdk.journal import FileJournal, NoJournal
from savepoint.sdk.state import State
from savepoint.sdk.termination import Termination

log: Final = logging.getLogger("savepoint")
_SOCKET_WAIT_SECONDS: Final = 30.0
_REATTACH_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.5
_DISTRIBUTION: Final = "savepoint-agents"


@dataclass(frozen=True)
class Settings:
    """What connect() takes from the environment."""

    socket: str | None
    stage: str | None
    required: bool

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """From a process's environment."""
        return cls(
            socket=environment.get(ENV_SOCKET) or None,
            stage=environment.get(ENV_STAGE) or None,
            required=environment.get(ENV_REQUIRED, "") == "1",
        )


class _Sessions:
    """The live session of this process, if there is one."""

    current: "weakref.ref[_Attached] | None" = None
    busy = threading.Lock()


class _Attached:
    """A session over the socket: its stream of orders, the thread that reads it, and SIGTERM."""

    def __init__(self, client: Client, connect: wire.Connect, connected: wire.Connected, session: AgentSession) -> None:
        self._client = client
        self._connect = connect
        self._session_id = connected.session
        self._reattaches = wire.FEATURE_REATTACH in connected.features
        self.session = session
        self.stream: OrderStream | None = None
        self.termination = Termination(self._signalled, session.clerk)
        self.link = SocketLink(client, self.id, self.close)
        self._closed = False

    def id(self) -> str:
        """The session as the sidecar calls it now."""
        return self._session_id

    def start(self) -> None:
        """Open the stream and read it until the end."""
        self.stream = self._client.orders(self._session_id)
        threading.Thread(target=self._read, name="savepoint-orders", daemon=True).start()

    def close(self) -> None:
        """The session is over: the sidecar sees the stream end."""
        self._closed = True
        if self.stream is not None:
            self.stream.cut()
        self.termination.uninstall()
        with _Sessions.busy:
            if _Sessions.current is not None and _Sessions.current() is self:
                _Sessions.current = None

    def forked(self) -> None:
        """In a forked child: the session is the parent's."""
        self._closed = True
        if self.stream is not None:
            self.stream.forget()
        self.session.forked(
            SessionInUse(
                "this is a forked child of an agent, and the session belongs to its parent: call the agent's methods "
                "in the parent only, or start workers with the 'spawn' method"
            )
        )

    def _signalled(self) -> None:
        self.session.stopping = True
        self.session.gate.alarm()

    def _read(self) -> None:
        while True:
            assert self.stream is not None
            for order in self.stream:
                if isinstance(order, wire.Stopping):
                    self.termination.told(order.grace_seconds)
                self.session.receive(order)
            with self.link.finishing:  # the stream ends, too, when the sidecar takes the last checkpoint
                if self._closed:
                    return
            gone = Unavailable("the sidecar went away; the agent goes on, and no checkpoint is taken until it is back")
            log.warning("%s", gone)
            self.session.lost(gone)
            if not self._reattach():
                return

    def _reattach(self) -> bool:
        """Find the sidecar again. False: this process will have no more checkpoints."""
        if not self._reattaches:
            self.session.broken(Unavailable("the sidecar went away, and its version takes no agent back that runs"))
            return False
        until = time.monotonic() + _REATTACH_SECONDS
        warned = False
        while not self._closed:
            try:
                connected = self._client.connect(self._connect, 0)
                self._session_id = connected.session
                self.stream = self._client.orders(self._session_id)
            except SessionInUse as error:
                log.warning("another process took this agent over: %s", error)
                self.session.broken(error)
                return False
            except SavepointError as error:
                if time.monotonic() > until and not warned:
                    warned = True
                    log.warning("the sidecar is still away: %s", error)
                    self.session.broken(Unavailable(f"the sidecar did not come back: {error}"))
                time.sleep(_RETRY_SECONDS)
                continue
            log.info("the sidecar is back")
            self.session.mended()
            return True
        return False


def connect(*, schema_version: str = "", sigterm: bool = True) -> Agent:
    """Connect this process to its sidecar; the state is back when this returns.

    Outside a managed pod and without ``savepoint run``: an agent that works and saves nothing, unless
    SAVEPOINT_REQUIRED=1. ``schema_version`` names the shape of your documents and is kept with each checkpoint.
    ``sigterm=False`` leaves SIGTERM alone. Raises SessionInUse, Unavailable, RestoreFailed and the sidecar's reasons.
    """
    settings = Settings.read(os.environ)
    if settings.socket is None:
        if settings.required:
            raise unmanaged()
        log.warning("not managed by Savepoint: this run works as usual and nothing of it is saved")
        return _local()
    with _Sessions.busy:
        known = _Sessions.current() if _Sessions.current is not None else None
        if known is not None:
            raise SessionInUse("this process is connected already: use the agent that connect() returned")
        attached = _attach(settings, schema_version)
        _Sessions.current = weakref.ref(attached)
    try:
        attached.start()
    except SavepointError:
        attached.close()
        raise
    if sigterm and attached.termination.install() and attached.termination.owns_exit:
        attached.session.exit = attached.termination.exit
    return Agent(attached.session)


def _attach(settings: Settings, schema_version: str) -> _Attached:
    assert settings.socket is not None
    client = Client(Path(settings.socket))
    me = wire.Connect(
        pid=os.getpid(),
        instance=uuid4().hex,
        sdk=f"python {_version()}",
        schema_version=schema_version,
        dependencies=_dependencies(),
        architecture=platform.machine(),
    )
    connected = client.connect(me, _SOCKET_WAIT_SECONDS)
    stage = stage_of(settings.stage)
    state = State(FileJournal(stage_layout.journal_folder(stage.root, connected.run)), stage)
    steps = state.restore(connected.components)
    back = connected.restored
    if back is not None:
        log.info("%s from %s: %d steps on record", back.how.lower(), back.checkpoint, steps)
    session = AgentSession(connected, state, required=settings.required)
    attached = _Attached(client, _again(me), connected, session)
    session.attach(attached.link)
    session.keep_alive = attached
    return attached


def _again(me: wire.Connect) -> wire.Connect:
    return wire.Connect(
        pid=me.pid,
        instance=me.instance,
        sdk=me.sdk,
        schema_version=me.schema_version,
        dependencies=me.dependencies,
        architecture=me.architecture,
        reattach=True,
    )


def _local() -> Agent:
    """Not managed: everything works in memory. Effects' ids differ from run to run, for nothing ties the runs."""
    connected = wire.Connected("", "local", "", 0, uuid4().int >> 65)
    return Agent(AgentSession(connected, State(NoJournal(), None), required=False))


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0"


def _dependencies() -> dict[str, str]:
    """Installed distributions and versions, for whoever asks later what this state was written with."""
    found = {str(item.metadata["Name"]): item.version for item in metadata.distributions() if item.metadata["Name"]}
    return dict(sorted(found.items())[:1000])


def _after_fork() -> None:
    _Sessions.busy = threading.Lock()  # whoever held it does not exist here
    known = _Sessions.current() if _Sessions.current is not None else None
    if known is not None:
        _Sessions.current = None
        known.forked()


os.register_at_fork(after_in_child=_after_fork)
