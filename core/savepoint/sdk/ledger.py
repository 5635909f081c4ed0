"""The effect ledger: what was sent to the outside world, under which id, and whether that is known to have arrived.

An effect is Sent from the moment its intent is journaled, Confirmed once its body returned, and Open for another try
when somebody said so. It does no I/O: the caller journals each record before it acts on it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from savepoint.sdk.errors import RestoreFailed

State = Literal["Sent", "Confirmed", "Open"]


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect. ``result`` is encoded text."""

    id: str
    path: str  # of the scope it belongs to
    name: str
    key: str
    risk: str
    time: str  # when it was sent last, UTC
    state: State = "Sent"
    result: str = field(default="null", repr=False)

    def to_plain(self) -> dict[str, Any]:
        """For the effects component and the journal."""
        plain = {"path": self.path, "name": self.name, "key": self.key, "time": self.time, "state": self.state}
        if self.risk:
            plain["risk"] = self.risk
        if self.state == "Confirmed":
            plain["result"] = self.result
        return plain

    @classmethod
    def from_plain(cls, effect_id: str, raw: Mapping[str, Any]) -> "Effect":
        """From the effects component or the journal. Raises RestoreFailed."""
        try:
            state = raw["state"]
            if state not in ("Sent", "Confirmed", "Open"):
                raise ValueError(state)
            return cls(
                id=str(effect_id),
                path=str(raw["path"]),
                name=str(raw["name"]),
                key=str(raw["key"]),
                risk=str(raw.get("risk", "")),
                time=str(raw["time"]),
                state=state,
                result=str(raw.get("result", "null")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RestoreFailed("the saved effect ledger cannot be read") from error


def effect_id(identity: tuple[str, str, int], path: str, name: str, key: str) -> str:
    """32 hexadecimal digits, the same in every incarnation of one run. identity: namespace, agent, run."""
    sha = hashlib.sha256()
    for part in (*map(str, identity), path, name, key):
        data = part.encode("utf-8", "surrogatepass")
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()[:32]


class Ledger:
    """Effects by id, in the order in which they were begun; ``running`` are those whose body runs now."""

    def __init__(self) -> None:
        self._effects: dict[str, Effect] = {}
        self.running: set[str] = set()

    def get(self, effect: str) -> Effect | None:
        """The effect of this id, if it was ever begun."""
        return self._effects.get(effect)

    def put(self, effect: Effect) -> None:
        """Note what was journaled."""
        self._effects[effect.id] = effect

    def confirm(self, effect: str, result: str) -> None:
        """Note a journaled confirmation."""
        self._effects[effect] = replace(self._effects[effect], state="Confirmed", result=result)

    def reopen(self, effect: str) -> None:
        """Note that the effect may be sent again under its id."""
        self._effects[effect] = replace(self._effects[effect], state="Open")

    def uncertain(self) -> list[Effect]:
        """Sent, not confirmed, and nobody is at it."""
        return [item for item in self._effects.values() if item.state == "Sent" and item.id not in self.running]

    def collapse(self, effects: list[str]) -> None:
        """The scope of these is finished: none can be asked for again. Uncertain ones stay, for somebody to see."""
        for effect in effects:
            known = self._effects.get(effect)
            if known is not None and known.state != "Sent":
                del self._effects[effect]

    def __iter__(self) -> Iterator[Effect]:
        return iter(list(self._effects.values()))

    def to_plain(self) -> dict[str, Any]:
        """For the effects component."""
        return {item.id: item.to_plain() for item in self._effects.values()}
