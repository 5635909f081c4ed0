"""Read-only view of a store for the command line: the agents it contains, and the chain of each."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from savepoint.contract.vocabulary import Reason
from savepoint.errors import IntegrityError, ObjectMissing, Refused, SavepointError, StoreMisconfigured
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.object_keys import commit_key
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import REPOSITORY_KEY, STORE_KEY, Repository, read_store
from savepoint.storage.directory import DirectoryStore
from savepoint.storage.retry import Retry
from savepoint.storage.store import FolderStore, ObjectStore
from savepoint.storage.wrapper import Retrying
from savepoint_sidecar.authority.local import NAMESPACE

from savepoint_cli.bucket import bucket_store
from savepoint_cli.key import key_path, master_key
from savepoint_cli.store_options import StoreOptions

RETRY: Final = Retry(attempts=4, total_seconds=12.0)


class Agent(NamedTuple):
    """An agent whose repository is in the store."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return display_name(self.namespace, self.name)


class StoreView:
    """An open store and its master key."""

    def __init__(self, name: str, store: FolderStore, master: MasterKey) -> None:
        """Check the key against the store.

        Args:
            name: The store's name in messages.
            store: The open store.
            master: Its master key.

        Raises:
            ObjectMissing: There is no Savepoint store here.
            KeyMismatch: The store was created under another key.
        """
        self._name, self._folder_store, self._master = name, store, master
        self._store: ObjectStore = Retrying(store, RETRY)
        read_store(self._store, master)

    def agents(self, namespace: str | None, name: str | None) -> list[Agent]:
        """List agents.

        Args:
            namespace: Only agents of this namespace; None for all.
            name: Only agents of this name; None for all.

        Returns:
            The agents; none if the store is empty and neither argument is given.

        Raises:
            Refused: An argument is given, and no agent matches; the message lists the agents of the store.
        """
        found = self._agents(namespace, name)
        if found or (namespace is None and name is None):
            return found
        wanted = f"agent {name!r}" if name is not None else "agent"
        where = self._name if namespace is None else f"namespace {namespace!r} of {self._name}"
        known = ", ".join(str(each) for each in self._agents(None, None)) or "none"
        raise Refused(f"no {wanted} in {where}; the store contains: {known}", Reason.AGENT_NOT_FOUND)

    def repository(self, agent: Agent) -> Repository:
        """Open an agent's repository. IntegrityError if its repository.json is missing or damaged."""
        try:
            return Repository.open(self._store, agent.namespace, agent.name, self._master)
        except ObjectMissing as error:
            key = f"{agent.namespace}/{agent.name}/{REPOSITORY_KEY}"
            raise IntegrityError(f"{key} is missing: without it the agent's checkpoints cannot be read", key) from error

    def _agents(self, namespace: str | None, name: str | None) -> list[Agent]:
        return [
            Agent(space, each)
            for space in self._folders("")
            if namespace in (None, space)
            for each in self._folders(f"{space}/")
            if name in (None, each) and self._is_agent(f"{space}/{each}/")
        ]

    def _folders(self, prefix: str) -> Sequence[str]:
        return RETRY.run(lambda: self._folder_store.folders(prefix))

    def _is_agent(self, prefix: str) -> bool:
        """Return whether an agent is stored here. If its repository.json was lost, it still has its commit records."""
        return any(self._store.head(prefix + key) is not None for key in (REPOSITORY_KEY, commit_key(1)))


@contextmanager
def open_view(options: StoreOptions) -> Iterator[StoreView]:
    """Open the store that the user named, and close it on exit.

    Args:
        options: The store and its key.

    Yields:
        The view.

    Raises:
        StoreMisconfigured: There is no store here, or an option is invalid.
        KeyMismatch: The key is missing, or is not this store's.
        StoreDenied, StoreUnavailable: The store cannot be read.
    """
    location = options.location
    if isinstance(location, Path):
        if not (location / STORE_KEY).is_file():
            raise StoreMisconfigured(
                f"no store at {location}; create one with: savepoint run --store {location} -- COMMAND"
            )
        master = master_key(options.master_key or key_path(), create=False)
        yield StoreView(str(location), DirectoryStore(location), master)
        return
    assert options.master_key is not None
    master = master_key(options.master_key, create=False)
    with closing(bucket_store(location)) as store:
        try:
            view = StoreView(str(location), store, master)
        except ObjectMissing as error:
            raise StoreMisconfigured(
                f"no store at {location}; compare bucket and prefix with spec.s3 of the AgentCheckpointStore"
            ) from error
        yield view


def display_name(namespace: str, name: str) -> str:
    """Return an agent's or a checkpoint's name as printed: without the namespace that every laptop uses."""
    return name if namespace == NAMESPACE else f"{namespace}/{name}"


def chain_records(repository: Repository) -> list[ChainRecord]:
    """Return the agent's commit records, oldest first, with every link verified."""
    chain = Chain(repository.store, repository.namespace, repository.agent)
    head = chain.head()
    if head is None:
        return []
    return list(chain.back(head, head.record.sequence))[::-1]


def describe(error: SavepointError) -> str:
    """Return an error as one line: its reason and its message."""
    return f"{error.reason}: {error}"
