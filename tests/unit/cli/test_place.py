"""Which store ``log`` and ``verify`` look into: arguments, what is refused, and that nothing is written."""

import shutil
import sys
from pathlib import Path

import pytest
from savepoint.errors import IntegrityError, KeyMismatch, StoreDenied, StoreMisconfigured
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.history.chain import commit_key
from savepoint.repository.repository import Repository
from savepoint.storage.directory import DirectoryStore
from savepoint_cli import bucket, view
from savepoint_cli.bucket import bucket_store
from savepoint_cli.key import master_key
from savepoint_cli.main import _parser, main
from savepoint_cli.place import Bucket, Place, place_of
from savepoint_cli.view import Agent, View

from tests.fakes.repository_fixture import MASTER, NOW, RepositoryFixture

KEY = bytes(range(32))
"""Of tests.fakes.repository_fixture."""
SECRET = "do-not-tell"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET}


def parsed(*arguments: str, **environment: str) -> Place:
    return place_of(_parser().parse_args(["log", *arguments]), environment)


class TestArguments:
    def test_a_folder(self) -> None:
        assert parsed("./state", "--agent", "coder") == Place(Path("state"), None, None, "coder")

    def test_a_bucket_and_its_defaults(self) -> None:
        place = parsed("s3://agents", "--master-key", "key")
        assert place == Place(Bucket("agents", "", "https://s3.amazonaws.com", "us-east-1", "path", None), Path("key"))

    def test_the_environment_says_where_and_an_option_says_it_first(self) -> None:
        around = {"AWS_ENDPOINT_URL": "https://s3.example.com", "AWS_REGION": "eu-1"}
        told = parsed("s3://agents/a/b/", "--master-key", "key", **around).where
        assert told == Bucket("agents", "a/b", "https://s3.example.com", "eu-1")
        more = ("--endpoint", "http://here:9000", "--region", "x", "--addressing", "virtual", "--ca", "ca.crt")
        chosen = parsed("s3://agents", "--master-key", "key", *more, **around).where
        assert chosen == Bucket("agents", "", "http://here:9000", "x", "virtual", Path("ca.crt"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["s3://agents"], "needs --master-key"),
            (["s3://"], "no bucket after s3://"),
            (["./state", "--endpoint", "http://here"], "--endpoint is for a store in a bucket"),
            (["./state", "--ca", "ca.crt"], "--ca is for a store in a bucket"),
        ],
    )
    @pytest.mark.parametrize("command", ["log", "verify"])
    def test_what_does_not_go_together_is_a_usage_error(
        self, command: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main([command, *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_keys_in_the_place_of_a_bucket_are_not_said_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["log", f"s3://me:{SECRET}@agents", "--master-key", "key"])
        assert SECRET not in capsys.readouterr().err


class TestBucket:
    @pytest.mark.parametrize("missing", ENVIRONMENT)
    def test_credentials_are_asked_for_by_name(self, missing: str) -> None:
        with pytest.raises(StoreMisconfigured, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set both"):
            bucket_store(Bucket("agents", ""), {**ENVIRONMENT, missing: ""})

    def test_the_store_is_that_of_the_operator_with_the_same_spec(self) -> None:
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
    def test_what_cannot_be_a_place_is_refused_without_a_secret(self, endpoint: str, prefix: str, region: str) -> None:
        with pytest.raises(StoreMisconfigured) as refused:
            bucket_store(Bucket("agents", prefix, endpoint, region), ENVIRONMENT)
        assert SECRET not in str(refused.value)

    def test_a_ca_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(StoreDenied, match="cannot be read"):
            bucket_store(Bucket("agents", "", ca=tmp_path / "ca.crt"), ENVIRONMENT)
        (tmp_path / "ca.crt").write_text("hello")
        with pytest.raises(StoreMisconfigured, match="no PEM certificates"):
            bucket_store(Bucket("agents", "", ca=tmp_path / "ca.crt"), ENVIRONMENT)

    def test_without_minio_it_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delitem(sys.modules, "savepoint.storage.s3", raising=False)
        monkeypatch.setitem(sys.modules, "minio", None)
        (tmp_path / "key").write_bytes(KEY)
        assert main(["log", "s3://agents", "--master-key", str(tmp_path / "key")]) == 1
        assert "pip install 'savepoint-agents[cli]'" in capsys.readouterr().err


def test_a_key_as_the_secret_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff" * 32)
    assert master_key(path, create=False).check == MasterKey(b"\xff" * 32).check
    path.write_text("c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=")
    with pytest.raises(KeyMismatch, match="holds no key") as refused:
        master_key(path, create=False)
    assert "c2Vj" not in str(refused.value) and refused.value.__cause__ is None


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder laid out as a cluster's bucket: two namespaces, other people's folders beside them."""
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
    def test_agents_by_namespace_and_name(self, cluster: Path) -> None:
        seen = View("here", DirectoryStore(cluster), MASTER)
        assert [str(each) for each in seen.agents(None, None)] == ["default/coder", "prod/coder", "prod/mailer"]
        assert seen.agents("prod", None) == [("prod", "coder"), ("prod", "mailer")]
        assert seen.agents(None, "coder") == [("default", "coder"), ("prod", "coder")]
        with pytest.raises(
            StoreMisconfigured, match=r"no agent 'mailer' in namespace 'default'; it holds: default/cod"
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

    def test_a_lost_salt_is_damage_and_others_are_read_on(
        self, cluster: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(cluster / "default", cluster / "aaa")
        (cluster / "aaa" / "coder" / "repository.json").unlink()
        assert main(["verify", str(cluster), "--master-key", str(cluster.parent / "key")]) == 1
        out, err = capsys.readouterr()
        assert "aaa/coder: IntegrityError: aaa/coder/repository.json is missing" in err
        assert "default/coder-1: " in out
        assert not (cluster / "aaa" / "coder" / "repository.json").exists()

    def test_another_key_is_refused(self, cluster: Path) -> None:
        with pytest.raises(KeyMismatch):
            View("here", DirectoryStore(cluster), MasterKey(bytes(32)))

    def test_an_empty_place_stays_empty(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Emptied(DirectoryStore):
            def close(self) -> None:
                """A folder has nothing to close."""

        (tmp_path / "empty").mkdir()
        (tmp_path / "key").write_bytes(KEY)
        monkeypatch.setattr(view, "bucket_store", lambda _: Emptied(tmp_path / "empty"))
        with (
            pytest.raises(StoreMisconfigured, match="s3://agents holds no store"),
            view.opened(Place(Bucket("agents", ""), tmp_path / "key")),
        ):
            pass
        assert list((tmp_path / "empty").iterdir()) == []

    def test_damage_of_what_opens_an_agent_is_told(self, cluster: Path) -> None:
        seen = View("here", DirectoryStore(cluster), MASTER)
        (cluster / "default" / "coder" / "repository.json").unlink()
        assert (cluster / "default" / "coder" / commit_key(1)).is_file()
        with pytest.raises(IntegrityError, match="without it nothing"):
            seen.repository(Agent("default", "coder"))
