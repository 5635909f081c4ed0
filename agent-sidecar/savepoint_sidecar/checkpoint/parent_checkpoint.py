"""The latest committed checkpoint known to this process: parent of the next one, and source of a restore."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from savepoint.contract.control_protocol import CheckpointRef
from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Manifest, Parent
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.read.manifest import load_manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.storage import BlobReader


@dataclass(frozen=True)
class ParentCheckpoint:
    """A committed checkpoint with its manifest."""

    ref: CheckpointRef
    manifest: Manifest = field(repr=False)

    @property
    def as_parent(self) -> Parent:
        """The entry under which the next manifest names this checkpoint."""
        return Parent(self.ref.sequence, self.ref.manifest.name)

    def pack_keys(self) -> tuple[str, ...]:
        """Return the keys of all packs that hold its content."""
        return tuple(pack_key(pack.name) for pack in self.manifest.packs)

    def with_component_names(self, names: Mapping[str, str]) -> "ParentCheckpoint":
        """Return the checkpoint with components under other names, for roots that were named otherwise before."""
        components = tuple(replace(each, name=names.get(each.name, each.name)) for each in self.manifest.components)
        lost = tuple(
            replace(each, component=names.get(each.component, each.component)) for each in self.manifest.shrinkages
        )
        return replace(self, manifest=replace(self.manifest, components=components, shrinkages=lost))

    def reader(self, blobs: BlobReader, key: AgentKey) -> CheckpointReader:
        """Return a reader of its content. The caller closes it."""
        return CheckpointReader(blobs, key, self.manifest)


def load(blobs: BlobReader, key: AgentKey, namespace: str, agent: str, ref: CheckpointRef) -> ParentCheckpoint:
    """Load the checkpoint's manifest. Blocking; raises what ``load_manifest`` raises."""
    named = ref.manifest
    return ParentCheckpoint(ref, load_manifest(blobs, key, namespace, agent, name=named.name, size=named.size))


@contextmanager
def naming_remedy(remedy: str) -> Iterator[None]:
    """Add what to do about it to an error that reports a damaged or incomplete checkpoint."""
    try:
        yield
    except IntegrityError as error:
        raise _with_remedy(error, remedy, error.object_key) from error
    except ObjectMissing as error:
        raise _with_remedy(error, remedy) from error


def _with_remedy(error: Exception, remedy: str, *arguments: str) -> Exception:
    return type(error)(f"{error}; {remedy}", *arguments) if remedy else error
