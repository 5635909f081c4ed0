"""Tests of how ``log`` and ``verify`` find their store: arguments, errors, and that nothing is written."""

import shutil
import sys
from pathlib import Path

import pytest
from savepoint.errors import IntegrityError, KeyMismatch, Refused, StoreDenied, StoreMisconfigured
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.object_keys import commit_key
from savepoint.repository.repository import Repository
from savepoint.storage.directory import DirectoryStore
from savepoint_cli import bucket, view
from savepoint_cli.bucket import bucket_store
from savepoint_cli.key import master_key
from savepoint_cli.main import _parser, main
from savepoint_cli.store_options import Bucket, StoreOptions, store_options
from savepoint_cli.view import Agent, StoreView

from tests.fakes.repository_fixture import MASTER, NOW, RepositoryFixture

KEY = bytes(range(32))
"""The master key of tests.fakes.repository_fixture."""
SECRET = "do-not-tell"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET}


def parsed(*arguments: str, **environment: str) -> StoreOptions:
    return store_options(_parser().parse_args(["log", *arguments]), environment)


class TestArguments:
    def test_a_folder_needs_no_bucket_options(self) -> None:
        assert parsed("./state", "--agent", "coder") == StoreOptions(Path("state"), None, None, "coder")

    def test_a_bucket_gets_the_default_options(self) -> None:
        options = parsed("s3://agents", "--master-key", "key")
        assert options == StoreOptions(
            Bucket("agents", "", "https://s3.amazonaws.com", "us-east-1", "path", None), Path("key")
        )

    def test_options_take_precedence_over_the_environment(self) -> None:
        environment = {"AWS_ENDPOINT_URL": "https://s3.example.com", "AWS_REGION": "eu-1"}
        from_environment = parsed("s3://agents/a/b/", "--master-key", "key", **environment).location
        assert from_environment == Bucket("agents", "a/b", "https://s3.example.com", "eu-1")
        more = ("--endpoint", "http://here:9000", "--region", "x", "--addressing", "virtual", "--ca", "ca.crt")
        chosen = parsed("s3://agents", "--master-key", "key", *more, **environment).location
        assert chosen == Bucket("agents", "", "http://here:9000", "x", "virtual", Path("ca.crt"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["s3://agents"], "needs --master-key"),
            (["s3://"], "no valid bucket name after s3://"),
            (["./state", "--endpoint", "http://here"], "--endpoint applies only to a store in a bucket"),
            (["./state", "--ca", "ca.crt"], "--ca applies only to a store in a bucket"),
        ],
    )
    @pytest.mark.parametrize("command", ["log", "verify"])
    def test_contradicting_arguments_are_a_usage_error(
        self, command: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main([command, *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_credentials_in_the_url_are_not_repeated(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["log", f"s3://me:{SECRET}@agents", "--master-key", "key"])
        assert SECRET not in capsys.readouterr().err


class TestBucket:
    @pytest.mark.parametrize("missing", ENVIRONMENT)
    def test_missing_credentials_are_named(self, missing: str) -> None:
        with pytest.raises(
            StoreMisconfigured, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        ):
            bucket_store(Bucket("agents", ""), {**ENVIRONMENT, missing: ""})

    def test_options_become_the_configuration_of_the_same_spec(self) -> None:
        config = bucket._config(Bucket("agents", "a/b", region="eu-1"), {**ENVIRONMENT, "AWS_SESSION_TOKEN": "t"})
        assert (config.bucket, config.prefix, config.region, config.session_token) == ("agents", "a/b/", "eu-1", "t")
        assert (config.access_key, config.secret_key) == ("me", SECRET)

    @pytest.mark.parametrize(
        ("endpoint", "prefix", "region"),
        [
            ("s3.example.com", "", "us-east-1"),
            ("https://s3.example.com/path", "", "us-east-1"),
            ("https://s3.example.com", "a b", "us-east-1"),
            ("https://s3.example.com", "", "no region"),
            (f"https://me:{SECRET}@s3.example.com", "", "us-east-1"),
        ],
    )
    def test_invalid_options_fail_without_printing_a_secret(self, endpoint: str, prefix: str, region: str) -> None:
        with pytest.raises(StoreMisconfigured) as refused:
            bucket_store(Bucket("agents", prefix, endpoint, region), ENVIRONMENT)
        assert SECRET not in str(refused.value)

    def test_an_unusable_ca_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreDenied, match="cannot read CA file"):
            bucket_store(Bucket("agents", "", ca=tmp_path / "ca.crt"), ENVIRONMENT)
        (tmp_path / "ca.crt").write_text("hello")
        with pytest.raises(StoreMisconfigured, match="no PEM certificates"):
            bucket_store(Bucket("agents", "", ca=tmp_path / "ca.crt"), ENVIRONMENT)

    def test_a_missing_minio_names_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delitem(sys.modules, "savepoint.storage.s3", raising=False)
        monkeypatch.setitem(sys.modules, "minio", None)
        (tmp_path / "key").write_bytes(KEY)
        assert main(["log", "s3://agents", "--master-key", str(tmp_path / "key")]) == 1
        assert "pip install 'savepoint-agents[cli]'" in capsys.readouterr().err


def test_a_key_is_read_in_the_raw_form_of_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff" * 32)
    assert master_key(path, create=False).check == MasterKey(b"\xff" * 32).check
    path.write_text("c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=")
    with pytest.raises(KeyMismatch, match="is not a master key") as refused:
        master_key(path, create=False)
    assert "c2Vj" not in str(refused.value) and refused.value.__cause__ is None


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder laid out like a cluster's bucket: two namespaces, and unrelated folders beside them."""
    path = tmp_path / "store"
    store = DirectoryStore(path, create=True)
    RepositoryFixture(store).checkpoint(lambda writer: writer.add_entries("documents", "Memory", []))
    Repository.open_or_create(store, "prod", "coder", MASTER, now=NOW)
    Repository.open_or_create(store, "prod", "mailer", MASTER, now=NOW)
    (path / "backups" / "monday").mkdir(parents=True)
    (path / "backups" / "monday" / "dump").touch()
    (tmp_path / "key").write_bytes(KEY)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


class TestView:
    def test_agents_are_selected_by_namespace_and_name(self, cluster: Path) -> None:
        seen = StoreView("here", DirectoryStore(cluster), MASTER)
        assert [str(each) for each in seen.agents(None, None)] == ["default/coder", "prod/coder", "prod/mailer"]
        assert seen.agents("prod", None) == [("prod", "coder"), ("prod", "mailer")]
        assert seen.agents(None, "coder") == [("default", "coder"), ("prod", "coder")]
        with pytest.raises(
            Refused,
            match=r"no agent 'mailer' in namespace 'default' of here; the store contains: default/cod",
        ):
            seen.agents("default", "mailer")

    def test_log_and_verify_write_nothing(self, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before, key = contents(cluster), str(cluster.parent / "key")
        assert main(["log", str(cluster), "--master-key", key]) == 0
        assert "agent default/coder" in capsys.readouterr().out
        assert main(["verify", str(cluster), "--master-key", key]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == [
            "prod/coder: no checkpoint yet",
            "prod/mailer: no checkpoint yet",
        ]
        assert contents(cluster) == before

    def test_a_missing_salt_is_damage_and_other_agents_are_verified(
        self, cluster: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(cluster / "default", cluster / "aaa")
        (cluster / "aaa" / "coder" / "repository.json").unlink()
        assert main(["verify", str(cluster), "--master-key", str(cluster.parent / "key")]) == 1
        out, err = capsys.readouterr()
        assert "aaa/coder: IntegrityError: aaa/coder/repository.json is missing" in err
        assert "default/coder-1: " in out
        assert not (cluster / "aaa" / "coder" / "repository.json").exists()

    def test_a_store_of_another_key_is_refused(self, cluster: Path) -> None:
        with pytest.raises(KeyMismatch):
            StoreView("here", DirectoryStore(cluster), MasterKey(bytes(32)))

    def test_a_bucket_without_a_store_stays_empty(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class EmptyStore(DirectoryStore):
            def close(self) -> None:
                """A folder has nothing to close."""

        (tmp_path / "empty").mkdir()
        (tmp_path / "key").write_bytes(KEY)
        monkeypatch.setattr(view, "bucket_store", lambda _: EmptyStore(tmp_path / "empty"))
        with (
            pytest.raises(StoreMisconfigured, match="no store at s3://agents"),
            view.open_view(StoreOptions(Bucket("agents", ""), tmp_path / "key")),
        ):
            pass
        assert list((tmp_path / "empty").iterdir()) == []

    def test_a_missing_repository_json_is_reported(self, cluster: Path) -> None:
        seen = StoreView("here", DirectoryStore(cluster), MASTER)
        (cluster / "default" / "coder" / "repository.json").unlink()
        assert (cluster / "default" / "coder" / commit_key(1)).is_file()
        with pytest.raises(IntegrityError, match="without it the agent's checkpoints"):
            seen.repository(Agent("default", "coder"))
