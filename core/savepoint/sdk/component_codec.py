"""Encode named values as components and decode them: small values go inline, large ones through files of the stage.

The module does not know what the values mean; the caller holds the agent's lock.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.vocabulary import ComponentKind
from savepoint.errors import FormatTooNew, SavepointError, StateUnstable
from savepoint.sdk.encoding import encode, utf8
from savepoint.sdk.errors import RestoreFailed
from savepoint.sdk.stage import Stage, stage_error

VERSION: Final = 1  # of the execution and effects components
_KINDS: Final[dict[str, wire.Kind]] = {
    wire.COMPONENT_DOCUMENTS: ComponentKind.MEMORY.value,
    wire.COMPONENT_HANDLES: ComponentKind.TOOLS.value,
    wire.COMPONENT_EXECUTION: ComponentKind.EXECUTION.value,
    wire.COMPONENT_EFFECTS: ComponentKind.TOOLS.value,
}


@dataclass(frozen=True)
class Value:
    """The content of an entry, before it is decided whether it goes inline."""

    name: str
    encoding: wire.Encoding
    data: bytes = field(repr=False)

    @classmethod
    def from_program(cls, name: str, value: Any, where: str) -> "Value":
        """Encode a value of the program. Raises NotEncodable that names the path below ``where``."""
        if isinstance(value, bytearray):
            return cls(name, "bytes", bytes(value))
        return cls(name, "json", utf8(encode(value, where)))

    @classmethod
    def versioned(cls, name: str, **plain: Any) -> "Value":
        """Encode plain JSON values of the SDK itself, with their version."""
        text = json.dumps({"version": VERSION, **plain}, ensure_ascii=False, separators=(",", ":"))
        return cls(name, "json", utf8(text))

    @property
    def inline_bytes(self) -> int:
        """The size of the value inside a JSON string, where quotes and backslashes are escaped."""
        return len(self.data) + self.data.count(b'"') + self.data.count(b"\\")


def sorted_by_name(values: Iterable[Value]) -> list[Value]:
    """Return the values in an order that does not depend on when they were created."""
    return sorted(values, key=lambda value: value.name)


def build_components(
    values: Mapping[str, list[Value]], stage: Stage | None
) -> tuple[list[wire.Component], Path | None]:
    """Return the components of these values, and the stage folder that holds those which are not inline, if any.

    The smallest values go inline, up to the protocol's limit. Raises StageFull, StateUnstable, Unavailable.
    """
    inline = _chosen_for_inline(item for group in values.values() for item in group)
    folder: Path | None = None
    components = []
    try:
        for name, group in values.items():
            entries = []
            for value in group:
                if id(value) in inline:
                    entries.append(wire.Entry(value.name, value.encoding, len(value.data), inline=value.data.decode()))
                    continue
                if stage is None:
                    raise StateUnstable("there is no stage for large documents")
                folder = folder or stage.new_folder("flush")
                path = folder / f"{name}-{len(entries)}"
                stage.write(path, (value.data,))
                entries.append(wire.Entry(value.name, value.encoding, len(value.data), path=stage.relative(path)))
            components.append(wire.Component(name, _KINDS[name], tuple(entries)))
    except SavepointError:
        if folder is not None and stage is not None:
            stage.remove(folder)
        raise
    return components, folder


def _chosen_for_inline(values: Iterable[Value]) -> set[int]:
    """Return the identities of the values that go inline."""
    chosen: set[int] = set()
    room = wire.INLINE_MAX_BYTES
    for value in sorted(values, key=lambda item: len(item.data)):
        if value.encoding == "json" and value.inline_bytes <= room:
            chosen.add(id(value))
            room -= value.inline_bytes
    return chosen


def carry_over(component: wire.Component, stage: Stage | None) -> wire.Component:
    """Return a restored component that the program has not used yet, with its files copied below ``agent/``.

    A component that a flush leaves out would be lost, and a flush may name only files of the agent.
    """
    if stage is None or all(entry.path is None or _is_agent_file(entry.path) for entry in component.entries):
        return component
    folder = stage.new_folder("carried")
    entries = []
    try:
        for index, entry in enumerate(component.entries):
            if entry.path is None:
                entries.append(entry)
                continue
            stage.copy_in(stage.root / entry.path, folder / str(index))
            path = stage.relative(folder / str(index))
            entries.append(wire.Entry(entry.name, entry.encoding, entry.size, path=path, meta=entry.meta))
    except SavepointError:
        stage.remove(folder)
        raise
    return wire.Component(component.name, component.kind, tuple(entries))


def read_values(component: wire.Component, stage: Stage | None) -> dict[str, Value]:
    """Return a restored component's values by name. Raises RestoreFailed."""
    return {entry.name: Value(entry.name, entry.encoding, _read(entry, stage)) for entry in component.entries}


def read_versioned(component: wire.Component, stage: Stage | None) -> Mapping[str, Any]:
    """Return the one value of a component that the SDK itself wrote. Raises RestoreFailed, FormatTooNew."""
    for value in read_values(component, stage).values():
        try:
            plain = json.loads(value.data)
            version = int(plain["version"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RestoreFailed(f"component {component.name!r} cannot be read") from error
        if version > VERSION:
            raise FormatTooNew(
                f"component {component.name!r} has version {version}, this SDK reads up to {VERSION}: "
                f"install a newer savepoint-agents"
            )
        return plain  # type: ignore[no-any-return]  # indexed above, so it is a dict
    return {}


def _read(entry: wire.Entry, stage: Stage | None) -> bytes:
    if entry.inline is not None:
        return utf8(entry.inline)
    if stage is None or entry.path is None:
        raise RestoreFailed(f"{entry.name!r} was restored to a file, and there is no stage to read it from")
    path = stage.root / entry.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise stage_error(error, path) from error
    if len(data) != entry.size:
        raise RestoreFailed(f"{entry.name!r}: the restored file is not {entry.size} bytes long")
    return data


def _is_agent_file(path: str) -> bool:
    return path.startswith(f"{stage_layout.AGENT}/")
