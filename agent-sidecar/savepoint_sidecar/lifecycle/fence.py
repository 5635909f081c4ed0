"""The fence that makes the agent's SDK refuse effects: this incarnation was stopped, or its node may be cut off.

It stops no process and no checkpoint. The chain itself refuses commits under an old epoch.
"""

import asyncio
from typing import Final

from savepoint.contract import agent_protocol as wire

from savepoint_sidecar.agent_api.process_session import ProcessSession, ProcessSessions
from savepoint_sidecar.authority.authority import Authority

CUT_OFF_SECONDS: Final = 10.0
"""Silence of the operator and the API server after which this node may be cut off."""
CHECK_SECONDS: Final = 1.0


class Fence:
    """The fence of one incarnation; lowered until something raises it."""

    def __init__(self, authority: Authority, sessions: ProcessSessions) -> None:
        self._authority, self._sessions = authority, sessions
        self._message = ""
        """Reason why the fence is raised; empty while it is lowered."""
        self._permanent = False

    async def watch(self) -> None:
        """Check every second whether this node may be cut off. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.update()

    def update(self) -> None:
        """Raise or lower the fence according to how long the authority has been silent."""
        if self._permanent:
            return
        cut_off = self._authority.silent_seconds > CUT_OFF_SECONDS
        if cut_off and not self._message:
            self._raise(f"neither the operator nor the cluster's API server has answered for {CUT_OFF_SECONDS:.0f} s")
        elif not cut_off and self._message:
            self._message = ""
            if self._sessions.live is not None:
                self._sessions.live.send(wire.Unfenced())

    def raise_permanently(self, message: str) -> None:
        """Raise the fence until this process ends."""
        self._permanent = True
        self._raise(message)

    def announce(self, session: ProcessSession) -> None:
        """Tell a new session if the fence is raised."""
        if self._message:
            session.send(wire.Fenced(self._message))

    def _raise(self, message: str) -> None:
        self._message = message
        if self._sessions.live is not None:
            self._sessions.live.send(wire.Fenced(message))
