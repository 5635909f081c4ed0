"""A store as the command line looks into it: which agents it holds, and the chain of each. It writes nothing."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from savepoint.errors import IntegrityError, ObjectMissing, SavepointError, StoreMisconfigured
from savepoint.repository.format.commit import Head
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.history.chain import Chain, commit_key
from savepoint.repository.repository import REPOSITORY_KEY, Repository, read_store
from savepoint.storage.directory import DirectoryStore
from savepoint.storage.retry import Retry
from savepoint.storage.store import FolderStore, ObjectStore
from savepoint.storage.wrapper import Retrying
from savepoint_sidecar.authority.local import NAMESPACE

from savepoint_cli.bucket import bucket_store
from savepoint_cli.key import key_path, master_key
from savepoint_cli.place import Place

RETRY: Final = Retry(attempts=4, total_seconds=12.0)


class Agent(NamedTuple):
    """Whose repository it is."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return title(self.namespace, self.name)


class View:
    """An open store, under its key."""

    def __init__(self, name: str, store: FolderStore, master: MasterKey) -> None:
        """``name`` is what people call the store. ObjectMissing if there is none, KeyMismatch if the key is another."""
        self._name, self._plain, self._master = name, store, master
        self._store: ObjectStore = Retrying(store, RETRY)
        read_store(self._store, master)

    def agents(self, namespace: str | None, name: str | None) -> list[Agent]:
        """Those that were asked for, by namespace and name. StoreMisconfigured if some were, and there is none."""
        found = self._agents(namespace, name)
        if found or (namespace is None and name is None):
            return found
        wanted = f"agent {name!r}" if name is not None else "agent"
        place = f" in namespace {namespace!r}" if namespace is not None else ""
        held = ", ".join(str(each) for each in self._agents(None, None)) or "none"
        raise StoreMisconfigured(f"{self._name} holds no {wanted}{place}; it holds: {held}")

    def repository(self, agent: Agent) -> Repository:
        """The agent's repository. IntegrityError if what opens it is missing or damaged."""
        try:
            return Repository.open(self._store, agent.namespace, agent.name, self._master)
        except ObjectMissing as error:
            key = f"{agent.namespace}/{agent.name}/{REPOSITORY_KEY}"
            raise IntegrityError(f"{key} is missing: without it nothing of the agent can be read", key) from error

    def _agents(self, namespace: str | None, name: str | None) -> list[Agent]:
        return [
            Agent(space, each)
            for space in self._folders("")
            if namespace in (None, space)
            for each in self._folders(f"{space}/")
            if name in (None, each) and self._is_agent(f"{space}/{each}/")
        ]

    def _folders(self, prefix: str) -> Sequence[str]:
        return RETRY.run(lambda: self._plain.folders(prefix))

    def _is_agent(self, prefix: str) -> bool:
        """A bucket may hold what is not ours; an agent whose repository.json was lost still has its chain."""
        return any(self._store.head(prefix + key) is not None for key in (REPOSITORY_KEY, commit_key(1)))


@contextmanager
def opened(place: Place) -> Iterator[View]:
    """The store at this place, closed afterwards. StoreMisconfigured if there is none, KeyMismatch as in View."""
    if isinstance(place.where, Path):
        path = place.where
        if not (path / "savepoint.json").is_file():
            raise StoreMisconfigured(f"{path} holds no store: savepoint run --store {path} -- COMMAND makes one")
        yield View(str(path), DirectoryStore(path), master_key(place.master_key or key_path(), create=False))
        return
    assert place.master_key is not None
    master = master_key(place.master_key, create=False)
    with closing(bucket_store(place.where)) as store:
        try:
            view = View(str(place.where), store, master)
        except ObjectMissing as error:
            raise StoreMisconfigured(
                f"{place.where} holds no store: check bucket and prefix against spec.s3 of the AgentCheckpointStore"
            ) from error
        yield view


def title(namespace: str, name: str) -> str:
    """An agent or checkpoint as people call it. A laptop has one namespace, which nobody chose."""
    return name if namespace == NAMESPACE else f"{namespace}/{name}"


def records(repository: Repository) -> list[Head]:
    """The agent's chain, oldest first, every link checked."""
    chain = Chain(repository.store, repository.namespace, repository.agent)
    head = chain.head()
    if head is None:
        return []
    return list(chain.back(head, head.record.sequence))[::-1]


def described(error: SavepointError) -> str:
    """One line for people."""
    return f"{error.reason}: {error}"
