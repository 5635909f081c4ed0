"""The sidecar's settings: read from the environment that the webhook writes, with errors that name the variable."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from savepoint.contract import names
from savepoint.contract.environment import SettingsError
from savepoint_sidecar import settings
from savepoint_sidecar.files.roots import Root

from tests.unit.sidecar.environment import ENVIRONMENT


def test_settings_are_read_from_what_the_webhook_writes() -> None:
    found = settings.from_environment(ENVIRONMENT)
    assert found.roots == (Root("data", "/data", Path("/savepoint/state/data"), True),)
    assert (found.grace_seconds, found.api_server) == (45, ("10.96.0.1", 443))
    assert found.stage == Path(names.STAGE_DIRECTORY) and "BEGIN" not in repr(found)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({names.ENV_CONTROL_URL: ""}, names.ENV_CONTROL_URL),
        ({names.ENV_POD_UID: ""}, names.ENV_POD_UID),
        ({names.ENV_GRACE_SECONDS: "soon"}, names.ENV_GRACE_SECONDS),
        ({names.ENV_ROOTS: "{"}, names.ENV_ROOTS),
        ({names.ENV_ROOTS: '[{"name": "a"}]'}, names.ENV_ROOTS),
        ({names.ENV_ROOTS: json.dumps([{"name": "a", "mountPath": "/a", "path": "/a"}] * 2)}, "twice"),
    ],
)
def test_an_invalid_variable_is_named(change: Mapping[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        settings.from_environment({**ENVIRONMENT, **change})
