"""The agent's uid is found out from what it writes, and never mistaken for that of images and init containers."""

import stat
from pathlib import Path

import pytest
from savepoint.contract.vocabulary import UidSource
from savepoint.errors import RunAsUserRequired
from savepoint_sidecar.capture.agent_user import AgentUser
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.files.ownership import ProcessUser
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import FileNode, Signature, Walk

STARTED_NS = 1000
ROOT = Root("data", "/data", Path("/nowhere"), persistent=False)
Entries = dict[str, tuple[int, int]]
"""Owner and ctime by path."""


def draft(entries: Entries, *, unreadable: dict[str, int] | None = None) -> Draft:
    nodes = [
        FileNode(path, stat.S_IFREG | 0o644, Signature(1, ctime, ctime, 7), uid, uid)
        for path, (uid, ctime) in entries.items()
    ]
    errors = {path: RunAsUserRequired(f"cannot read {path}", uid) for path, uid in (unreadable or {}).items()}
    return Draft(ROOT, Walk(ROOT, nodes), FileTable(), unreadable=errors)


def examined(source: UidSource | None, uid: int, entries: Entries, connected: int | None = None) -> int | None:
    user = AgentUser(ProcessUser(uid, source), STARTED_NS)
    user.connected = connected
    return user.examine([draft(entries)])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, None),
        ({"from-image": (0, 1)}, None),
        ({"a": (1000, 2000), "b": (1000, 2000)}, 1000),
        ({"from-image": (0, 1), "and-more": (0, 2), "a": (1000, 3)}, 1000),
        ({"unpacked": (1001, 1), "more": (1001, 2), "log": (0, 2000)}, 0),
        ({"unpacked": (1001, 2000), "log": (0, 2000), "notes": (0, 2000)}, 0),
        ({"restored-by-root": (0, 1), "again": (0, 1), "new": (1000, 2000)}, 1000),
        ({"of-a-helper": (2000, 1500), "a": (1000, 1500), "b": (1000, 1600)}, 1000),
    ],
)
def test_without_a_declared_uid_what_was_written_decides(entries: Entries, expected: int | None) -> None:
    assert examined(UidSource.NONE, 0, entries) == expected


@pytest.mark.parametrize("source", [None, UidSource.POD])
def test_a_uid_that_the_agent_certainly_has_is_not_doubted(source: UidSource | None) -> None:
    assert examined(source, 1000, {"prepared": (2000, 2000)}) == 1000
    assert examined(source, 0, {"prepared": (2000, 2000)}, connected=2000) == 0


def test_the_process_that_connects_counts_more_than_files() -> None:
    assert examined(UidSource.NONE, 0, {"a": (0, 2000)}, connected=1000) == 1000
    assert examined(UidSource.OBSERVED, 1000, {"a": (1000, 2000)}, connected=0) == 0


@pytest.mark.parametrize("source", [UidSource.ANNOTATION, UidSource.POLICY, UidSource.OBSERVED])
def test_a_uid_that_owns_files_is_the_agents(source: UidSource) -> None:
    entries = {"a": (1000, 1), "of-a-helper": (2000, 2000), "of-root": (0, 2000), "more": (2000, 2000)}
    assert examined(source, 1000, entries) == 1000
    assert examined(source, 1000, {"prepared-by-root": (0, 1)}) is None


@pytest.mark.parametrize(
    ("source", "field"),
    [(UidSource.ANNOTATION, "savepoint.dev/run-as-user"), (UidSource.POLICY, "spec.injection.runAsUser of the policy")],
)
def test_a_wrong_number_that_the_next_pod_would_have_too_is_refused(source: UidSource, field: str) -> None:
    with pytest.raises(RunAsUserRequired) as refused:
        examined(source, 1001, {"a": (1000, 2000)})
    message = str(refused.value)
    assert field in message and "says 1001" in message and "runAsUser: 1000" in message and refused.value.owner == 1000
    assert examined(source, 1001, {"a": (1000, 2000)}, connected=0) == 0, "root can write any file"


@pytest.mark.parametrize("source", [UidSource.NONE, UidSource.OBSERVED])
def test_a_wrong_number_that_the_next_pod_will_not_have_is_accepted(source: UidSource) -> None:
    assert examined(source, 0 if source == UidSource.NONE else 1001, {"a": (1000, 2000)}) == 1000


def test_an_unreadable_file_of_the_agent_refuses_the_checkpoint_however_many_others_can_be_read() -> None:
    found = draft({f"f{number}": (1000, 2000) for number in range(50)}, unreadable={"closed": 1000})
    with pytest.raises(RunAsUserRequired, match="cannot read closed") as refused:
        AgentUser(ProcessUser(0, UidSource.NONE), STARTED_NS).examine([found])
    assert refused.value.owner == 1000


def test_an_unreadable_file_of_another_user_is_only_left_out() -> None:
    found = draft({"a": (1000, 2000)}, unreadable={"lost+found": 0, "helper": 2000})
    assert AgentUser(ProcessUser(1000, UidSource.ANNOTATION), STARTED_NS).examine([found]) == 1000
