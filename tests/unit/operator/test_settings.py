"""The operator's settings, read from its environment."""

import json

import pytest
from savepoint.contract.environment import SettingsError
from savepoint_operator.settings import Settings

BASE = {"SAVEPOINT_NAMESPACE": "savepoint-system", "SAVEPOINT_POD_NAME": "operator-0"}


def test_the_environment_of_the_chart_is_read() -> None:
    store = {"name": "default", "spec": {"s3": {"bucket": "agents"}, "default": True}}
    settings = Settings.from_environment(
        {
            **BASE,
            "SAVEPOINT_DEFAULT_STORE": json.dumps(store),
            "SAVEPOINT_TLS_SECRET": "tls",
            "SAVEPOINT_LOG_LEVEL": "DEBUG",
        }
    )
    assert (settings.namespace, settings.identity, settings.tls_secret) == ("savepoint-system", "operator-0", "tls")
    assert settings.default_store is not None
    assert settings.default_store.spec["s3"] == {"bucket": "agents"}
    assert Settings.from_environment(BASE).default_store is None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"SAVEPOINT_NAMESPACE": ""}, "SAVEPOINT_NAMESPACE"),
        ({"SAVEPOINT_POD_NAME": ""}, "SAVEPOINT_POD_NAME"),
        ({"SAVEPOINT_DEFAULT_STORE": "{"}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_DEFAULT_STORE": "[]"}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_DEFAULT_STORE": '{"name":"","spec":{"s3":{}}}'}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_DEFAULT_STORE": '{"name":"a","spec":{}}'}, "SAVEPOINT_DEFAULT_STORE"),
        ({"SAVEPOINT_CONTROL_PORT": "eight"}, "SAVEPOINT_CONTROL_PORT"),
        ({"SAVEPOINT_HEALTH_PORT": "99999"}, "SAVEPOINT_HEALTH_PORT"),
        ({"SAVEPOINT_LOG_LEVEL": "LOUD"}, "SAVEPOINT_LOG_LEVEL"),
        ({"SAVEPOINT_NOT_RUNNING_SECONDS": "soon"}, "SAVEPOINT_NOT_RUNNING_SECONDS"),
        ({"SAVEPOINT_NOT_RUNNING_SECONDS": "0"}, "SAVEPOINT_NOT_RUNNING_SECONDS"),
    ],
)
def test_an_invalid_variable_is_named(change: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({**BASE, **change})
