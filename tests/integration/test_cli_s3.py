"""``savepoint log`` and ``savepoint verify`` of a bucket, run as a user runs them, over real S3 servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from savepoint.repository.write.source import MemorySource
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import S3Config

from tests.fakes.repository_fixture import RepositoryFixture, content
from tests.servers.s3 import S3Server

BUCKET = "savepoint-cli"


@dataclass
class StoreInBucket:
    """A store with one agent and one checkpoint, in its own prefix."""

    server: S3Server
    config: S3Config
    key: Path
    pack: str

    @property
    def url(self) -> str:
        return f"s3://{self.config.bucket}/{self.config.prefix.rstrip('/')}"

    def listing(self) -> dict[str, tuple[str | None, object]]:
        """Return (digest, time) of every object in the bucket by name."""
        found = self.server.client().list_objects(self.config.bucket, recursive=True)
        return {each.object_name or "": (each.etag, each.last_modified) for each in found}

    def savepoint(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command with the endpoint and the credentials of the server; ``environment`` replaces them."""
        result = subprocess.run(
            [sys.executable, "-W", "error", "-m", "savepoint_cli.main", *arguments],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
                "AWS_ENDPOINT_URL": self.server.endpoint,
                "AWS_REGION": self.server.region,
                "AWS_ACCESS_KEY_ID": self.server.access_key,
                "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
                **environment,
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert self.server.secret_key not in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    def log(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self.savepoint("log", self.url, "--master-key", str(self.key), *arguments, **environment)

    def verify(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.savepoint("verify", self.url, "--master-key", str(self.key), *arguments)


@pytest.fixture
def stored(s3_server: S3Server, tmp_path: Path) -> Iterator[StoreInBucket]:
    config = s3_server.config(BUCKET)
    (tmp_path / "master.key").write_bytes(bytes(range(32)))
    with closing(S3Store(config)) as store:
        written = RepositoryFixture(store).checkpoint(
            lambda writer: writer.add_blob("weights", "ModelWeights", MemorySource(content("weights", 3 << 20)))
        )
        store.put_new("other/people/thing", b"not an agent")
        assert store.folders("") == ["default", "other"]
        assert store.folders("default/") == ["coder"] and store.folders("nowhere/") == []
    yield StoreInBucket(s3_server, config, tmp_path / "master.key", written.packs[0].name)


def test_log_and_verify_read_a_bucket_without_changing_it(stored: StoreInBucket) -> None:
    before = stored.listing()
    log = stored.log()
    assert (log.returncode, log.stderr) == (0, "")
    agent, _, start, checkpoint = log.stdout.splitlines()
    assert agent == "agent default/coder" and "start" in start and "coder-1" in checkpoint and "3072Ki" in checkpoint
    verify = stored.verify("--all", "--namespace", "default", "--agent", "coder")
    assert (verify.returncode, verify.stderr) == (0, "")
    assert verify.stdout == "default/coder-1: 3072Ki in 1 component, all readable\n"
    assert stored.listing() == before

    name = f"{stored.config.prefix}default/coder/packs/{stored.pack}"
    client = stored.server.client()
    with closing(client.get_object(BUCKET, name)) as answer:
        damaged = bytearray(answer.read())
        answer.release_conn()
    damaged[1000] ^= 1
    client.put_object(BUCKET, name, BytesIO(damaged), len(damaged))
    before = stored.listing()
    verify = stored.verify()
    assert verify.returncode == 1 and verify.stdout == ""
    assert f"default/coder-1: packs/{stored.pack}: weights: " in verify.stderr
    assert stored.log().returncode == 0
    assert stored.listing() == before


def test_a_mistake_is_named_and_nothing_is_written(stored: StoreInBucket, tmp_path: Path) -> None:
    before = stored.listing()
    (tmp_path / "other.key").write_bytes(bytes(32))
    key = ("--master-key", str(stored.key))
    for result, message in (
        (stored.savepoint("log", "s3://savepoint-nowhere", *key), "NoSuchBucket"),
        (stored.savepoint("log", f"s3://{BUCKET}/empty/place", *key), f"no store at s3://{BUCKET}/empty/place"),
        (stored.savepoint("verify", stored.url, "--master-key", str(tmp_path / "other.key")), "KeyMismatch"),
        (stored.log(AWS_SECRET_ACCESS_KEY="wrong-secret"), "StoreDenied"),
        (stored.log(AWS_ACCESS_KEY_ID="unknown-user"), "StoreDenied"),
        (stored.log(AWS_SECRET_ACCESS_KEY=""), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"),
        (stored.log("--agent", "mailer"), f"no agent 'mailer' in {stored.url}; the store contains: default/coder"),
        (stored.log("--endpoint", "http://127.0.0.1:9"), "StoreUnavailable"),
    ):
        assert (result.returncode, result.stdout) == (1, ""), result.stderr
        assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert stored.listing() == before
