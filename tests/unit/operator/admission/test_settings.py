"""The webhook's settings."""

from pathlib import Path

import pytest
from savepoint.contract.environment import SettingsError
from savepoint_operator.admission.settings import WebhookSettings

GIVEN = {
    "SAVEPOINT_SIDECAR_IMAGE": "savepoint-sidecar:1",
    "SAVEPOINT_CONTROL_URL": "wss://savepoint-operator.savepoint-system.svc:8443/v1/control",
    "SAVEPOINT_TLS_DIRECTORY": "/etc/savepoint/tls",
}


def test_three_variables_are_enough() -> None:
    settings = WebhookSettings.from_environment(GIVEN)
    assert settings.sidecar_image == "savepoint-sidecar:1"
    assert settings.tls_directory == Path("/etc/savepoint/tls")
    assert (settings.port, settings.health_port, settings.pull_policy) == (9443, 8080, "IfNotPresent")
    assert (settings.certificate_poll_seconds, settings.drain_seconds) == (5.0, 5.0)


@pytest.mark.parametrize("name", GIVEN)
def test_each_of_the_three_variables_is_required(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        WebhookSettings.from_environment(GIVEN | {name: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAVEPOINT_CONTROL_URL", "http://x"),
        ("SAVEPOINT_SIDECAR_PULL_POLICY", "Sometimes"),
        ("SAVEPOINT_WEBHOOK_PORT", "https"),
        ("SAVEPOINT_HEALTH_PORT", "65536"),
    ],
)
def test_an_invalid_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        WebhookSettings.from_environment(GIVEN | {name: value})
