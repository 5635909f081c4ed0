"""The effect ledger: what was sent to the outside world, under which id, and whether it is known to have arrived.

The ledger does no I/O: the caller journals each change before it makes it here.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from savepoint.sdk.errors import RestoreFailed


class EffectState(StrEnum):
    """The progress of an effect. The values are stored in checkpoints and journals."""

    SENT = "Sent"
    """Its intent is journaled; it may have arrived."""
    CONFIRMED = "Confirmed"
    """Its body returned, or the program declared that it arrived."""
    OPEN = "Open"
    """It may be sent again: the program said so, or its body said that nothing was sent."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect. ``result`` is encoded text."""

    id: str
    path: str  # of the scope it belongs to
    name: str
    key: str
    risk: str
    time: str  # when it was last sent, UTC
    state: EffectState = EffectState.SENT
    result: str = field(default="null", repr=False)

    def to_plain(self) -> dict[str, Any]:
        """Return the effect as plain JSON values, for the effects component and the journal."""
        plain = {"path": self.path, "name": self.name, "key": self.key, "time": self.time, "state": self.state.value}
        if self.risk:
            plain["risk"] = self.risk
        if self.state == EffectState.CONFIRMED:
            plain["result"] = self.result
        return plain

    @classmethod
    def from_plain(cls, effect_id: str, raw: Mapping[str, Any]) -> "Effect":
        """Return the effect that ``to_plain`` described. Raises RestoreFailed."""
        try:
            return cls(
                id=str(effect_id),
                path=str(raw["path"]),
                name=str(raw["name"]),
                key=str(raw["key"]),
                risk=str(raw.get("risk", "")),
                time=str(raw["time"]),
                state=EffectState(raw["state"]),
                result=str(raw.get("result", "null")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RestoreFailed("the saved effect ledger cannot be read") from error


def effect_id(identity: tuple[str, str, int], path: str, name: str, key: str) -> str:
    """Return 32 hexadecimal digits, the same in every incarnation of one run.

    ``identity`` is the agent's namespace, name and run.
    """
    sha = hashlib.sha256()
    for part in (*map(str, identity), path, name, key):
        data = part.encode("utf-8", "surrogatepass")
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()[:32]


class Ledger:
    """Effects by id, in the order in which they were begun. ``running`` holds the ids whose body runs now."""

    def __init__(self) -> None:
        self._effects: dict[str, Effect] = {}
        self.running: set[str] = set()

    def get(self, effect: str) -> Effect | None:
        """Return the effect with this id, or None if it was never begun."""
        return self._effects.get(effect)

    def put(self, effect: Effect) -> None:
        """Add or replace an effect."""
        self._effects[effect.id] = effect

    def confirm(self, effect: str, result: str) -> None:
        """Mark an effect as confirmed, with its encoded result."""
        self._effects[effect] = replace(self._effects[effect], state=EffectState.CONFIRMED, result=result)

    def reopen(self, effect: str) -> None:
        """Mark an effect as one that may be sent again under its id."""
        self._effects[effect] = replace(self._effects[effect], state=EffectState.OPEN)

    def uncertain(self) -> list[Effect]:
        """Return the effects that were sent and not confirmed, and whose body does not run now."""
        return [
            item for item in self._effects.values() if item.state == EffectState.SENT and item.id not in self.running
        ]

    def collapse(self, effects: list[str]) -> None:
        """Drop effects of a finished scope, which cannot run again. Uncertain ones stay, so that they are reported."""
        for effect in effects:
            known = self._effects.get(effect)
            if known is not None and known.state != EffectState.SENT:
                del self._effects[effect]

    def __iter__(self) -> Iterator[Effect]:
        return iter(list(self._effects.values()))

    def to_plain(self) -> dict[str, Any]:
        """Return the ledger as plain JSON values, for the effects component."""
        return {item.id: item.to_plain() for item in self._effects.values()}
