"""Named values to components and back: what is small goes inline, what is not goes through files of the stage.

It does not know what the values mean; the caller holds the agent's lock.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.errors import FormatTooNew, SavepointError, StateUnstable
from savepoint.sdk.encoding import encode, utf8
from savepoint.sdk.errors import RestoreFailed
from savepoint.sdk.stage import Stage, translated

VERSION: Final = 1  # of the execution and effects components
_KINDS: Final[dict[str, wire.Kind]] = {
    wire.COMPONENT_DOCUMENTS: "Memory",
    wire.COMPONENT_HANDLES: "Tools",
    wire.COMPONENT_EXECUTION: "Execution",
    wire.COMPONENT_EFFECTS: "Tools",
}


@dataclass(frozen=True)
class Value:
    """An entry before it is known whether it goes inline."""

    name: str
    encoding: wire.Encoding
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, value: Any, where: str) -> "Value":
        """A value of the program. Raises NotEncodable naming the path below ``where``."""
        if isinstance(value, bytearray):
            return cls(name, "bytes", bytes(value))
        return cls(name, "json", utf8(encode(value, where)))

    @classmethod
    def versioned(cls, name: str, **plain: Any) -> "Value":
        """A value of ours."""
        text = json.dumps({"version": VERSION, **plain}, ensure_ascii=False, separators=(",", ":"))
        return cls(name, "json", utf8(text))

    @property
    def inline_bytes(self) -> int:
        """What it takes inside a JSON string."""
        return len(self.data) + self.data.count(b'"') + self.data.count(b"\\")


def by_name(values: Iterable[Value]) -> list[Value]:
    """In an order that does not depend on when they were made."""
    return sorted(values, key=lambda value: value.name)


def placed(values: Mapping[str, list[Value]], stage: Stage | None) -> tuple[list[wire.Component], Path | None]:
    """Components of these values, smallest inline up to the protocol's bound, and the folder of the rest."""
    inline: set[int] = set()
    room = wire.INLINE_MAX_BYTES
    for value in sorted((item for group in values.values() for item in group), key=lambda item: len(item.data)):
        if value.encoding == "json" and value.inline_bytes <= room:
            inline.add(id(value))
            room -= value.inline_bytes
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
                folder = folder or stage.folder("flush")
                path = folder / f"{name}-{len(entries)}"
                stage.write(path, (value.data,))
                entries.append(wire.Entry(value.name, value.encoding, len(value.data), path=stage.relative(path)))
            components.append(wire.Component(name, _KINDS[name], tuple(entries)))
    except SavepointError:
        if folder is not None and stage is not None:
            stage.remove(folder)
        raise
    return components, folder


def carried(component: wire.Component, stage: Stage | None) -> wire.Component:
    """A restored component that the program has not asked for: its files as ours, so that it is not lost."""
    if stage is None or all(entry.path is None or _is_ours(entry.path) for entry in component.entries):
        return component
    folder = stage.folder("carried")
    entries = []
    try:
        for index, entry in enumerate(component.entries):
            if entry.path is None:
                entries.append(entry)
                continue
            stage.adopt(stage.root / entry.path, folder / str(index))
            path = stage.relative(folder / str(index))
            entries.append(wire.Entry(entry.name, entry.encoding, entry.size, path=path, meta=entry.meta))
    except SavepointError:
        stage.remove(folder)
        raise
    return wire.Component(component.name, component.kind, tuple(entries))


def read(component: wire.Component, stage: Stage | None) -> dict[str, Value]:
    """A restored component's values by name. Raises RestoreFailed."""
    return {entry.name: Value(entry.name, entry.encoding, _data(entry, stage)) for entry in component.entries}


def read_versioned(component: wire.Component, stage: Stage | None) -> Mapping[str, Any]:
    """The one value of a component of ours. Raises RestoreFailed, FormatTooNew."""
    for value in read(component, stage).values():
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
        return plain  # type: ignore[no-any-return]  # indexed above: a dict
    return {}


def _data(entry: wire.Entry, stage: Stage | None) -> bytes:
    if entry.inline is not None:
        return utf8(entry.inline)
    if stage is None or entry.path is None:
        raise RestoreFailed(f"{entry.name!r} came back as a file, and there is no stage to read it from")
    path = stage.root / entry.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise translated(error, path) from error
    if len(data) != entry.size:
        raise RestoreFailed(f"{entry.name!r}: the restored file is not {entry.size} bytes long")
    return data


def _is_ours(path: str) -> bool:
    return path.startswith(f"{stage_layout.AGENT}/")
