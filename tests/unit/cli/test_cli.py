"""Tests of the command line that start no process: names, the key, log and verify."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import ObjectName, Offer, Timing
from savepoint.errors import KeyMismatch
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter
from savepoint.storage.directory import DirectoryStore
from savepoint_cli.key import master_key
from savepoint_cli.log import human_size
from savepoint_cli.main import main
from savepoint_cli.run_options import RunOptions, agent_name, own_file_patterns
from savepoint_cli.state_folders import dns_label, root_name, shown_path, state_roots
from savepoint_sidecar.authority.local import LocalAuthority, LocalClock, LocalConfig
from savepoint_sidecar.files.exclude import Excluded


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "agent.py"], "agent"),
        (["python", "-u", "/srv/My_Agent v2.py", "--x"], "my-agent-v2"),
        (["./run.sh"], "run"),
        (["node", "index.js"], "node"),
        (["--"], "agent"),
    ],
)
def test_an_agent_is_named_after_its_script(command: list[str], name: str) -> None:
    assert agent_name(command) == name


def test_a_name_becomes_a_dns_label() -> None:
    assert dns_label("Ärger--" + "x" * 80) == "rger-" + "x" * 47


def test_state_folders_are_named_after_their_path(tmp_path: Path) -> None:
    roots = state_roots((tmp_path / "work", tmp_path / "other" / "work", Path()))
    assert [shown_path(root.component) for root in roots] == [root.mount_path for root in roots]
    assert {root.name for root in roots} >= {root_name(str(tmp_path / "work")), root_name(str(Path().absolute()))}
    assert all(root.path.is_absolute() and root.persistent for root in roots)


def test_the_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "config" / "savepoint" / "master.key"
    with pytest.raises(KeyMismatch, match="expected at"):
        master_key(path, create=False)
    first = master_key(path, create=True)
    assert master_key(path, create=True).check == first.check == master_key(path, create=False).check
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() not in repr(first)
    assert [each.name for each in path.parent.iterdir()] == ["master.key"]
    path.write_text("not a key")
    with pytest.raises(KeyMismatch, match="is not a master key"):
        master_key(path, create=True)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (1024, "1Ki"), (5 << 20, "5120Ki"), (1 << 40, "1024Gi")]
)
def test_sizes_are_printed_in_binary_units(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one checkpoint of one agent."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "store"
    authority = LocalAuthority.open(
        DirectoryStore(path, create=True),
        "coder",
        master_key(tmp_path / "config" / "savepoint" / "master.key", create=True),
        LocalConfig(),
        LocalClock(lambda: datetime.now(UTC), os.urandom),
        incarnation="one",
        node="here",
    )
    blobs = authority.blobs
    key: AgentKey = authority._repository.key
    writer = CheckpointWriter(blobs, blobs, key, 1, None)
    writer.add_blob("notes", "Memory", MemorySource(b"n" * 5000))
    made = writer.finish(
        namespace="local", agent="coder", attempt="0" * 32, created="2026-01-01T00:00:00.000000Z",
        consistency="Fuzzy", parent=None,
    )  # fmt: skip
    writer.commit()
    authority._commit(
        Offer(made.attempt, ObjectName(made.name, made.size), (), "Interval", "Fuzzy", 0, 0, 0, Timing(""))
    )
    return path


def test_log_prints_the_history(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", str(store)]) == 0
    agent, header, start, checkpoint = capsys.readouterr().out.splitlines()
    assert agent == "agent coder" and header.split()[:4] == ["TIME", "SEQ", "RUN", "EPOCH"]
    assert "start" in start
    assert checkpoint.split()[5:8] == ["checkpoint", "coder-1", "Interval"] and "5Ki" in checkpoint


def test_log_of_an_unknown_agent_lists_the_known_ones(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", str(store), "--agent", "mailer"]) == 1
    assert "the store contains: coder" in capsys.readouterr().err
    assert main(["log", str(store / "nowhere")]) == 1
    assert "no store at" in capsys.readouterr().err


def test_log_fails_under_another_key(store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config" / "savepoint" / "master.key").write_text("11" * 32)
    assert main(["log", str(store)]) == 1
    assert "KeyMismatch" in capsys.readouterr().err


def test_verify_names_the_damaged_object(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(store)]) == 0
    assert "coder-1: 5Ki" in capsys.readouterr().out
    (pack,) = (store / "local" / "coder" / "packs").iterdir()
    content = bytearray(pack.read_bytes())
    content[20] ^= 1
    pack.write_bytes(content)
    assert main(["verify", str(store), "--all"]) == 1
    assert f"packs/{pack.name}" in capsys.readouterr().err


def test_run_without_a_command_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--store", str(tmp_path)]) == 2
    assert "no command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--store", "", "--", "true"], "must be a folder"),
        (["run", "--store", "s3://bucket", "--", "true"], "must be a folder"),
        (["run", "--store", "store", "--agent", "", "--", "true"], "must not be empty"),
        (["log", ""], "must be a folder or s3://BUCKET"),
        (["log", "https://user:secret@host/bucket"], "must be a folder or s3://BUCKET"),
    ],
)
def test_an_invalid_store_or_name_is_a_usage_error(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and "secret" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("[z-a]", "contains the reversed range z-a; write a-z"),
        ("", "is empty"),
        ("**", "excludes every file"),
        ("../a", "contains '.' or '..'"),
        ("/elsewhere/cache", "is outside every state folder"),
        ("STATE/**", "excludes every file"),
        ("STATE/[", "contains '[' without its ']'"),
    ],
)
def test_an_invalid_exclude_pattern_is_a_usage_error(
    pattern: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    pattern = pattern.replace("STATE", str(state))
    arguments = ["--store", str(tmp_path / "store"), "--state", str(state), "--exclude", "*.tmp", "--exclude", pattern]
    assert main(["run", *arguments, "--", "true"]) == 2
    error = capsys.readouterr().err
    assert f"error: argument --exclude: {pattern!r} {message}" in error
    assert not list(tmp_path.iterdir())


def test_store_and_key_are_excluded_from_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    options = RunOptions(tmp_path / "work" / "store", "a", ("true",), states=(tmp_path, tmp_path / "work" / "data"))
    assert own_file_patterns(options) == (f"{tmp_path}/work/store", f"{tmp_path}/config/savepoint")
    excluded = Excluded(own_file_patterns(options), str(tmp_path))
    assert excluded.covers("work/store/local/a") and not excluded.covers("work/data/x")
