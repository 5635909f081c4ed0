"""A restore that the agent could not use is refused, with the number to write."""

import pytest
from savepoint.contract.vocabulary import UidSource
from savepoint.errors import RunAsUserRequired
from savepoint_sidecar.files import ownership
from savepoint_sidecar.files.ownership import ProcessUser, require_restorable


@pytest.fixture(autouse=True)
def _no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "may_change_owners", lambda: False)


@pytest.mark.parametrize(
    ("source", "uid"),
    [(UidSource.NONE, 0), (UidSource.ANNOTATION, 1001), (UidSource.POLICY, 0), (UidSource.OBSERVED, 2000)],
)
def test_files_of_another_uid_are_refused(source: UidSource, uid: int) -> None:
    with pytest.raises(RunAsUserRequired, match="runAsUser: 1000 on the agent's container") as refused:
        require_restorable(ProcessUser(uid, source), 1000, "coder-3")
    message = str(refused.value)
    assert "coder-3" in message and f"runs as uid {uid}" in message and 'savepoint.dev/run-as-user: "1000"' in message


@pytest.mark.parametrize(
    ("source", "uid", "agent_uid"),
    [
        (UidSource.NONE, 0, None),  # a checkpoint of an older version
        (UidSource.NONE, 0, 0),
        (UidSource.OBSERVED, 1000, 1000),
        (UidSource.ANNOTATION, 1000, 0),  # root can write any file
        (UidSource.POD, 2000, 1000),  # the agent itself has the new uid
        (None, 501, 1000),  # a laptop: the person who runs the agent becomes the owner
    ],
)
def test_what_the_agent_can_use_is_restored(source: UidSource | None, uid: int, agent_uid: int | None) -> None:
    require_restorable(ProcessUser(uid, source), agent_uid, "coder-3")


def test_a_process_that_may_change_owners_restores_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "may_change_owners", lambda: True)
    require_restorable(ProcessUser(0, UidSource.NONE), 1000, "coder-3")
