"""Real servers for the integration tests: one of each per test session.

The programs that the collected tests need are built before the first test starts, so that no test's time limit
includes a build. If a program cannot be built, only the tests that need it fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from e2e.cluster.bootstrap import BootstrapError
from e2e.cluster.go.catalogue import ProgramError
from e2e.cluster.programs import build
from tests.servers import apiserver as apiserver_module
from tests.servers import minio, versitygw
from tests.servers.apiserver import ApiServer, api_server
from tests.servers.minio import minio_server
from tests.servers.s3 import S3Server
from tests.servers.versitygw import versitygw_server

PROGRAMS = {
    "s3_minio": minio.PROGRAMS,
    "s3_versitygw": versitygw.PROGRAMS,
    "s3_server": (*minio.PROGRAMS, *versitygw.PROGRAMS),
    "apiserver": apiserver_module.PROGRAMS,
    "apiserver_with_controllers": (*apiserver_module.PROGRAMS, *apiserver_module.CONTROLLER_PROGRAMS),
}
CONTROLLERS = ("namespace-controller", "garbage-collector-controller")
_failures: dict[str, str] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    needed = dict.fromkeys(name for fixture, names in PROGRAMS.items() if fixture in fixtures for name in names)
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # minutes without output would look like a hang
        for name in needed:
            try:
                build([name])
            except (ProgramError, BootstrapError) as error:
                _failures[name] = str(error)


def _require(names: tuple[str, ...]) -> None:
    broken = [_failures[name] for name in names if name in _failures]
    if broken:
        pytest.fail("\n".join(broken), pytrace=False)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """The HTTP client of the sidecars and init containers that the tests play."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(scope="session")
def s3_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A MinIO server."""
    _require(minio.PROGRAMS)
    with minio_server(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A versitygw server over a folder."""
    _require(versitygw.PROGRAMS)
    with versitygw_server(tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture(scope="session", params=["minio", "versitygw"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """An S3 server; the test runs once with each implementation."""
    server = request.getfixturevalue(f"s3_{request.param}")
    assert isinstance(server, S3Server)
    return server


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """etcd and kube-apiserver, without controllers."""
    _require(apiserver_module.PROGRAMS)
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture(scope="session")
def apiserver_with_controllers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Another API server, which finalizes deleted namespaces and deletes the children of deleted owners."""
    _require(PROGRAMS["apiserver_with_controllers"])
    with api_server(tmp_path_factory.mktemp("apiserver"), controllers=CONTROLLERS) as server:
        yield server
