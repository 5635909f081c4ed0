"""A manifest: the sealed root of one checkpoint, as a value and as bytes.

It neither stores nor fetches objects; ``segment``, ``tree`` and ``entry`` define the content of its segments.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from savepoint.contract.capture_report import CaptureReport
from savepoint.contract.shrinkage import MAX_SHRINKAGES, WHOLE, Amount, Shrinkage
from savepoint.contract.vocabulary import ComponentKind, Consistency
from savepoint.errors import IntegrityError, StateTooLarge
from savepoint.repository.format import canonical
from savepoint.repository.format.canonical import FORMAT, Fields, is_hexadecimal
from savepoint.repository.format.capture_fields import capture_of, capture_to_wire
from savepoint.repository.format.chunk import MAX_PACK_BYTES, PACK_HEADER, PACK_NAME, ChunkRef, refs_of
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.seal import NONCE_BYTES, TAG_BYTES
from savepoint.repository.format.tree import MAX_ID

MAX_MANIFEST_BYTES = 1 << 20
MAX_SEGMENTS = 16384

Layout = Literal["blob", "tree", "entries"]
LAYOUTS: tuple[Layout, ...] = ("blob", "tree", "entries")
COMPONENT_KINDS: Final = frozenset(ComponentKind)
CONSISTENCIES: Final = frozenset(Consistency)

_MAGIC = b"SVPNTMF1"
_OVERHEAD_BYTES = len(_MAGIC) + NONCE_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that the manifest refers to, with its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Parent:
    """The checkpoint that this one is based on."""

    sequence: int
    manifest: str
    """Name of the parent's manifest object."""


@dataclass(frozen=True, slots=True)
class Execution:
    """The agent's position: its step, and the ids of its open and uncertain operations."""

    step: str | None = None
    open: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes in bytes."""

    logical: int
    """The content of all components."""
    stored: int
    """The distinct sealed chunks that the manifest refers to, segments included."""
    uploaded: int
    """The packs uploaded for it."""


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """One component: a document set, tensors, the execution state, or one file tree."""

    name: str
    kind: str
    layout: Layout
    digest: str
    size: int
    """Bytes of plain content."""
    segments: tuple[ChunkRef, ...]
    architecture_bound: bool = False
    files: int | None = None
    """Number of regular files in a file tree; None for other layouts, and if the writer did not count them."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about one checkpoint except its content."""

    namespace: str
    agent: str
    attempt: str
    epoch: int
    created: str
    """The time of the checkpoint, as canonical.time_text writes it."""
    consistency: str
    components: tuple[ComponentRecord, ...]
    packs: tuple[Pack, ...]
    size: Sizes
    parent: Parent | None = None
    schema_version: str = ""
    config_hash: str = ""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    execution: Execution = Execution()
    agent_uid: int | None = None
    """The uid under which the agent ran; None if nothing showed it."""
    shrinkages: tuple[Shrinkage, ...] = ()
    """Losses of state, in this checkpoint or before, that no checkpoint has made up for."""
    capture: CaptureReport | None = None
    """The report of the capture of files; None if there are no files, or if the writer did not say."""

    @property
    def content_digest(self) -> str:
        """The digest over name, kind, layout and digest of every component; equal digests mean that nothing changed."""
        rows = sorted([c.name, c.kind, c.layout, c.digest] for c in self.components)
        return hashlib.sha256(canonical.encode(rows)).hexdigest()

    def amounts(self) -> dict[str, Amount]:
        """Return how much state there is: in all, and in each file tree."""
        trees = {each.name: Amount(each.size, each.files) for each in self.components if each.layout == "tree"}
        counts = [each.files for each in trees.values()]
        files = sum(each for each in counts if each is not None) if None not in counts else None
        return {WHOLE: Amount(sum(each.size for each in self.components), files)} | trees

    def component(self, name: str) -> ComponentRecord | None:
        """Return the component with this name, if there is one."""
        return next((each for each in self.components if each.name == name), None)


def manifest_name(content: bytes) -> str:
    """Return the name under which a manifest's bytes are stored."""
    return hashlib.sha256(content).hexdigest()


def component_digest(segments: Iterable[ChunkRef]) -> str:
    """Return the digest of a component with these segments."""
    digest = hashlib.sha256()
    for ref in segments:
        digest.update(ref.id)
    return digest.hexdigest()


def seal_manifest(manifest: Manifest, key: AgentKey, nonce: bytes) -> bytes:
    """Return the manifest object's bytes. ``nonce`` is 12 fresh random bytes. StateTooLarge above 1 MiB."""
    plain = canonical.encode(_to_wire(manifest))
    if len(plain) + _OVERHEAD_BYTES > MAX_MANIFEST_BYTES:
        raise StateTooLarge(
            f"the manifest of {manifest.namespace}/{manifest.agent} needs {len(plain) + _OVERHEAD_BYTES} bytes, "
            f"at most {MAX_MANIFEST_BYTES} fit: the state has too many segments or packs; leave parts of it out"
        )
    content = bytearray(len(plain) + _OVERHEAD_BYTES)
    content[: _OVERHEAD_BYTES - TAG_BYTES] = _MAGIC + nonce
    associated = _associated(manifest.namespace, manifest.agent)
    with memoryview(content) as view:
        key.manifest_seal().seal_into(nonce, plain, associated, view[_OVERHEAD_BYTES - TAG_BYTES :])
    return bytes(content)


def open_manifest(content: bytes, key: AgentKey, namespace: str, agent: str, name: str) -> Manifest:
    """Decrypt and check a manifest object, whose hash must be ``name``; raise IntegrityError naming it."""
    where = f"manifests/{name}"
    if not _OVERHEAD_BYTES < len(content) <= MAX_MANIFEST_BYTES or not content.startswith(_MAGIC):
        raise IntegrityError(f"{where} is not a manifest", where)
    if manifest_name(content) != name:
        raise IntegrityError(f"{where}: the content does not match its name", where)
    nonce = content[len(_MAGIC) : _OVERHEAD_BYTES - TAG_BYTES]
    plain = bytearray(len(content) - _OVERHEAD_BYTES)
    sealed = memoryview(content)[_OVERHEAD_BYTES - TAG_BYTES :]
    key.manifest_seal().open_into(nonce, sealed, _associated(namespace, agent), memoryview(plain), where)
    manifest = _of_wire(canonical.decode_canonical(plain, where), where)
    if (manifest.namespace, manifest.agent) != (namespace, agent):
        raise IntegrityError(f"{where} belongs to {manifest.namespace}/{manifest.agent}", where)
    return manifest


def _associated(namespace: str, agent: str) -> bytes:
    return f"savepoint-manifest-v1:{namespace}/{agent}".encode()


def _to_wire(manifest: Manifest) -> dict[str, Any]:
    parent = manifest.parent
    optional: dict[str, Any] = {} if manifest.agent_uid is None else {"agentUid": manifest.agent_uid}
    if manifest.shrinkages:
        optional["shrinkages"] = [_shrinkage_to_wire(each) for each in manifest.shrinkages]
    if manifest.capture is not None:
        optional["capture"] = capture_to_wire(manifest.capture)
    return optional | {
        "format": FORMAT,
        "namespace": manifest.namespace,
        "agent": manifest.agent,
        "attempt": manifest.attempt,
        "epoch": manifest.epoch,
        "created": manifest.created,
        "consistency": manifest.consistency,
        "parent": parent and {"sequence": parent.sequence, "manifest": parent.manifest},
        "schemaVersion": manifest.schema_version,
        "configHash": manifest.config_hash,
        "dependencies": dict(manifest.dependencies),
        "architecture": manifest.architecture,
        "components": [_component_to_wire(each) for each in manifest.components],
        "packs": [{"name": each.name, "size": each.size} for each in manifest.packs],
        "execution": {
            "step": manifest.execution.step,
            "open": list(manifest.execution.open),
            "uncertain": list(manifest.execution.uncertain),
        },
        "size": {
            "logical": manifest.size.logical,
            "stored": manifest.size.stored,
            "uploaded": manifest.size.uploaded,
        },
        "contentDigest": manifest.content_digest,
    }


def _shrinkage_to_wire(shrinkage: Shrinkage) -> dict[str, Any]:
    return {
        "sequence": shrinkage.sequence,
        "component": shrinkage.component,
        "bytesBefore": shrinkage.bytes_before,
        "bytesNow": shrinkage.bytes_now,
        "filesBefore": shrinkage.files_before,
        "filesNow": shrinkage.files_now,
    }


def _component_to_wire(component: ComponentRecord) -> dict[str, Any]:
    optional = {} if component.files is None else {"files": component.files}
    return optional | {
        "name": component.name,
        "kind": component.kind,
        "layout": component.layout,
        "digest": component.digest,
        "size": component.size,
        "segments": [ref.to_wire() for ref in component.segments],
        "architectureBound": component.architecture_bound,
    }


def _of_wire(value: object, where: str) -> Manifest:
    fields = Fields(value, where)
    fields.format()
    manifest = Manifest(
        namespace=fields.text("namespace"),
        agent=fields.text("agent"),
        attempt=fields.text("attempt"),
        epoch=fields.integer("epoch", minimum=1),
        created=fields.time("created"),
        consistency=fields.text("consistency"),
        parent=_parent_of(fields.take("parent"), where),
        schema_version=fields.text("schemaVersion"),
        config_hash=fields.text("configHash"),
        dependencies=_dependencies_of(fields, where),
        architecture=fields.text("architecture"),
        components=tuple(_component_of(each, where) for each in fields.array("components")),
        packs=tuple(_pack_of(each, where) for each in fields.array("packs")),
        execution=_execution_of(fields.take("execution"), where),
        size=_sizes_of(fields.take("size"), where),
        agent_uid=fields.integer("agentUid", maximum=MAX_ID) if fields.has("agentUid") else None,
        shrinkages=_shrinkages_of(fields, where) if fields.has("shrinkages") else (),
        capture=capture_of(fields.take("capture"), where) if fields.has("capture") else None,
    )
    digest = fields.hexadecimal("contentDigest")
    fields.end()
    if digest != manifest.content_digest:
        fields.refuse("has a content digest that does not match its components")
    if manifest.consistency not in CONSISTENCIES:
        fields.refuse(f"has an unknown consistency {manifest.consistency!r}")
    if manifest.config_hash and not is_hexadecimal(manifest.config_hash, len(manifest.config_hash)):
        fields.refuse("has a configuration hash that is not hexadecimal")
    _check_lists(manifest, fields)
    return manifest


def _check_lists(manifest: Manifest, fields: Fields) -> None:
    names = [each.name for each in manifest.components]
    packs = [each.name for each in manifest.packs]
    if len(set(names)) != len(names):
        fields.refuse("names a component twice")
    if sorted(set(packs)) != packs:
        fields.refuse("has packs that are not sorted or occur twice")
    sizes = {each.name: each.size for each in manifest.packs}
    for component in manifest.components:
        for ref in component.segments:
            if ref.offset + ref.stored > sizes.get(ref.pack, 0):
                fields.refuse(f"refers to a segment outside its packs in component {component.name!r}")


def _dependencies_of(fields: Fields, where: str) -> dict[str, str]:
    value = fields.mapping("dependencies")
    if not all(isinstance(version, str) for version in value.values()):
        raise IntegrityError(f"{where} has a dependency without a version", where)
    return value


def _parent_of(value: object, where: str) -> Parent | None:
    if value is None:
        return None
    fields = Fields(value, where)
    parent = Parent(sequence=fields.integer("sequence", minimum=1), manifest=fields.hexadecimal("manifest"))
    fields.end()
    return parent


def _shrinkages_of(fields: Fields, where: str) -> tuple[Shrinkage, ...]:
    values = fields.array("shrinkages")
    if len(values) > MAX_SHRINKAGES:
        fields.refuse(f"names more than {MAX_SHRINKAGES} shrinkages")
    return tuple(_shrinkage_of(each, where) for each in values)


def _shrinkage_of(value: object, where: str) -> Shrinkage:
    fields = Fields(value, where)
    shrinkage = Shrinkage(
        sequence=fields.integer("sequence", minimum=1),
        component=fields.text("component", max_length=255),
        bytes_before=fields.integer("bytesBefore"),
        bytes_now=fields.integer("bytesNow"),
        files_before=fields.integer_or_none("filesBefore"),
        files_now=fields.integer_or_none("filesNow"),
    )
    fields.end()
    return shrinkage


def _component_of(value: object, where: str) -> ComponentRecord:
    fields = Fields(value, where)
    layout, kind = fields.text("layout"), fields.text("kind")
    known = next((each for each in LAYOUTS if each == layout), None)
    if known is None or kind not in COMPONENT_KINDS:
        fields.refuse(f"has a component of unknown layout {layout!r} or kind {kind!r}")
    segments = fields.array("segments")
    if len(segments) > MAX_SEGMENTS:
        fields.refuse("has a component with too many segments")
    component = ComponentRecord(
        name=fields.text("name", max_length=255),
        kind=kind,
        layout=known,
        digest=fields.hexadecimal("digest"),
        size=fields.integer("size"),
        segments=refs_of(segments, where),
        architecture_bound=fields.boolean("architectureBound"),
        files=fields.integer("files") if fields.has("files") else None,
    )
    fields.end()
    if component.digest != component_digest(component.segments):
        fields.refuse(f"has a component {component.name!r} whose digest does not match its segments")
    return component


def _pack_of(value: object, where: str) -> Pack:
    fields = Fields(value, where)
    pack = Pack(fields.text("name"), fields.integer("size", minimum=len(PACK_HEADER) + 1, maximum=MAX_PACK_BYTES))
    fields.end()
    if not PACK_NAME.fullmatch(pack.name):
        fields.refuse("names a pack with an invalid name")
    return pack


def _execution_of(value: object, where: str) -> Execution:
    fields = Fields(value, where)
    execution = Execution(fields.text_or_none("step"), fields.texts("open"), fields.texts("uncertain"))
    fields.end()
    return execution


def _sizes_of(value: object, where: str) -> Sizes:
    fields = Fields(value, where)
    sizes = Sizes(fields.integer("logical"), fields.integer("stored"), fields.integer("uploaded"))
    fields.end()
    return sizes
