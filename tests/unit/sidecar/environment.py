"""The environment that the webhook writes into an injected container, and a clock that tests set by hand."""

import json

from savepoint.contract import names

ENVIRONMENT = {
    names.ENV_CONTROL_URL: "wss://operator:8443/v1/control",
    names.ENV_CONTROL_CA: "-----BEGIN CERTIFICATE-----",
    names.ENV_POD_UID: "uid-1",
    names.ENV_GRACE_SECONDS: "45",
    names.ENV_ROOTS: json.dumps(
        [{"name": "data", "mountPath": "/data", "path": "/savepoint/state/data", "persistent": True}]
    ),
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
}


class ManualClock:
    """A monotonic clock that advances only when a test sets ``now``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
