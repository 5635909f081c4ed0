"""Another webhook that injects a sidecar into pods, like that of a service mesh.

It answers admission reviews over TLS and does not change a pod that has its sidecar already. The test registers it.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from tests.servers.pki import Authority
from tests.servers.process import HOST

VOLUME = {"name": "mesh-data", "emptyDir": {}}
VARIABLE = {"name": "MESH_PORT", "value": "15001"}
SIDECAR = {
    "name": "mesh-proxy",
    "image": "mesh-proxy:1",
    "restartPolicy": "Always",
    "env": [VARIABLE],
    "volumeMounts": [{"name": "mesh-data", "mountPath": "/var/lib/mesh"}],
}


@contextmanager
def injector(authority: Authority, folder: Path) -> Iterator[str]:
    """Run the webhook and yield its URL; its certificate and its key are in the folder."""
    with HTTPServer((HOST, 0), _ReviewHandler) as server:
        server.socket = authority.server_context([HOST], folder).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"https://{HOST}:{server.server_port}/inject"
        finally:
            server.shutdown()
            thread.join()


def add_mesh(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod's spec with a native sidecar as its last init container, a volume, and a variable."""
    inits = spec.get("initContainers", [])
    if SIDECAR["name"] in [each["name"] for each in inits]:
        return dict(spec)
    containers = [{**each, "env": [*each.get("env", []), VARIABLE]} for each in spec["containers"]]
    volumes = [*spec.get("volumes", []), VOLUME]
    return {**spec, "initContainers": [*inits, SIDECAR], "containers": containers, "volumes": volumes}


class _ReviewHandler(BaseHTTPRequestHandler):
    timeout = 10  # a silent client must not block the end of the test

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        before = review["request"]["object"]["spec"]
        response: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": True}
        if (after := add_mesh(before)) != before:
            patch = json.dumps([{"op": "replace", "path": "/spec", "value": after}])
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}
        content = json.dumps({name: review[name] for name in ("apiVersion", "kind")} | {"response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
