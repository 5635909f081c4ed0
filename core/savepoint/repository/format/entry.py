"""Named values of one component: documents, or the arrays of a tensor set. Their bytes are opaque here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from savepoint.repository.format.canonical import Fields, encode, ensure_canonical
from savepoint.repository.format.content import Content
from savepoint.repository.format.tree import content_fields, content_of

MAX_NAME_CHARACTERS = 1024
MAX_META_BYTES = 64 << 10

Encoding = Literal["json", "bytes", "tensor"]
ENCODINGS: tuple[Encoding, ...] = ("json", "bytes", "tensor")


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """A stored value."""

    name: str
    encoding: Encoding
    content: Content
    meta: Mapping[str, Any] = field(default_factory=dict)


def line_of(record: EntryRecord) -> bytes:
    """Return the entry's line; raise ValueError for a name or meta that the format cannot hold."""
    meta = ensure_canonical(dict(record.meta), f"the meta of {record.name!r}")
    if not 1 <= len(record.name) <= MAX_NAME_CHARACTERS or not record.name.isprintable():
        raise ValueError(f"an entry's name has 1 to 1,024 printable characters, not {record.name!r}")
    if len(encode(meta)) > MAX_META_BYTES:
        raise ValueError(f"the meta of {record.name!r} is larger than 64 KiB")
    value = {"name": record.name, "encoding": record.encoding, "meta": meta} | content_fields(record.content)
    return encode(value) + b"\n"


def entry_of(value: object, where: str) -> EntryRecord:
    """Parse and check the entry of a line."""
    fields = Fields(value, where)
    encoding = fields.text("encoding", max_length=16)
    known = next((each for each in ENCODINGS if each == encoding), None)
    if known is None:
        fields.refuse(f"has an entry of unknown encoding {encoding!r}")
    record = EntryRecord(
        name=fields.text("name", max_length=MAX_NAME_CHARACTERS),
        encoding=known,
        content=content_of(fields, where),
        meta=fields.mapping("meta"),
    )
    fields.end()
    return record
