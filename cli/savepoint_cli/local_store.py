"""A directory store as the command line reads it: which agents it holds, and the chain of each."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from savepoint.errors import SavepointError, StoreMisconfigured
from savepoint.repository.chain import Chain
from savepoint.repository.commit import Head
from savepoint.repository.repository import Repository, open_store
from savepoint.storage.directory import DirectoryStore
from savepoint_sidecar.local import NAMESPACE, OWNER

from savepoint_cli.key import key_path, master_key


def repositories(path: Path, only: str | None, now: datetime) -> Iterator[Repository]:
    """The agents of a store, by name. StoreMisconfigured if there is no store, or no such agent."""
    if not (path / "savepoint.json").is_file():
        raise StoreMisconfigured(f"{path} holds no store: savepoint run --store {path} -- COMMAND makes one")
    master = master_key(key_path(), create=False)
    store = DirectoryStore(path)
    open_store(store, OWNER, master)
    folder = path / NAMESPACE
    found = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    if only is not None and only not in found:
        raise StoreMisconfigured(f"{path} holds no agent {only!r}; it holds: {', '.join(found) or 'none'}")
    for name in found:
        if only in (None, name):
            yield Repository.open_or_create(store, NAMESPACE, name, master, now=now)


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
