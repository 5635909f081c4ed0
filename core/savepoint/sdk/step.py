"""Steps: functions that run once, whose results are journaled and replayed."""

import logging
from dataclasses import dataclass, field
from typing import Final

from savepoint.errors import StageFull, Unavailable
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.errors import StepChanged
from savepoint.sdk.keys import numbered
from savepoint.sdk.scope import Scope, StepRecord

log: Final = logging.getLogger("savepoint")


@dataclass
class StepCall:
    """One call of ``Agent.step``, before it is known whether its result is recorded."""

    name: str
    scope: Scope
    arguments: str
    """Digest of the arguments."""
    warned: set[str]
    """Names of the steps that the user was already warned about."""
    label: str = field(default="", init=False)
    ordinal: int = field(default=0, init=False)

    @property
    def segment(self) -> str:
        """Path segment of the scope in which the step's function runs."""
        return f"{self.label}()"

    def begin(self, session: AgentSession) -> str | None:
        """Number the step in its scope. Return the recorded result as encoded text, None if the step is to run.

        Raises:
            StepChanged: The step is recorded with other arguments.
        """
        scope = self.scope
        with session.lock:
            session.raise_if_ended()
            self.ordinal = scope.ordinals.take(f"step {self.name}")
            self.label = numbered(self.name, self.ordinal)
            record = scope.steps.get(self.label)
        self._warn_if_ambiguous(recorded=record is not None)
        if record is None:
            return None
        if record.digest != self.arguments:
            scope.ordinals.give_back(f"step {self.name}", self.ordinal)
            raise StepChanged(
                f"step {self.name!r} ({scope.path or 'top'}/{self.label}) is recorded with other arguments: put a step "
                f"that repeats into agent.loop(); if you changed the program, give the step a new name or start a "
                f"fresh run"
            )
        return record.text

    def fail(self, session: AgentSession) -> None:
        """Free the step's number after its function raised: a failed step is not recorded."""
        with session.lock:
            self.scope.ordinals.give_back(f"step {self.name}", self.ordinal)

    def record(self, session: AgentSession, text: str) -> None:
        """Journal the encoded result. What was recorded inside the step is no longer needed."""
        scope = self.scope
        with session.lock:
            record = StepRecord(self.arguments, text)
            try:
                session.state.record_step(scope, self.label, record)
            except (StageFull, Unavailable) as error:
                log.warning("step %r is not journaled and would run again after a crash: %s", self.name, error)
                scope.steps[self.label] = record
            session.state.ledger.collapse(scope.drop(self.segment))
            session.state.note_progress()

    def _warn_if_ambiguous(self, *, recorded: bool) -> None:
        """Warn once if a step repeats in one scope with a safe point in between."""
        scope, name = self.scope, self.name
        repeated = self.ordinal and not recorded and scope.safe_points_at_step.get(name) != scope.safe_points
        if repeated and name not in self.warned:
            self.warned.add(name)
            log.warning(
                "step %r repeats in one scope with safe points in between: after a restart its first result would "
                "be replayed; put what repeats into agent.loop()",
                name,
            )
        scope.safe_points_at_step[name] = scope.safe_points
