"""Another webhook that injects into pods, as a service mesh does: what stands beside Savepoint's in a real cluster.

What it is: a server that answers admission reviews over TLS, and leaves a pod alone that has its sidecar already. What
it is not: registered; which pods the API server sends to it, and when, is the test's to say.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Injector:
    """A running one."""

    url: str
    """Where it takes reviews."""


@contextmanager
def injector(authority: Authority, room: Path) -> Iterator[Injector]:
    """It answers for as long as the block runs; its certificate and key lie in room."""
    with HTTPServer((HOST, 0), _Reviews) as server:
        server.socket = authority.serving([HOST], room).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Injector(f"https://{HOST}:{server.server_port}/inject")
        finally:
            server.shutdown()
            thread.join()


def meshed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The pod's spec with a native sidecar after its init containers, a volume, and a variable for its containers."""
    inits = spec.get("initContainers", [])
    if SIDECAR["name"] in [each["name"] for each in inits]:
        return dict(spec)
    containers = [{**each, "env": [*each.get("env", []), VARIABLE]} for each in spec["containers"]]
    volumes = [*spec.get("volumes", []), VOLUME]
    return {**spec, "initContainers": [*inits, SIDECAR], "containers": containers, "volumes": volumes}


class _Reviews(BaseHTTPRequestHandler):
    timeout = 10  # a client that says nothing must not hold up the end

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        before = review["request"]["object"]["spec"]
        response: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": True}
        if (after := meshed(before)) != before:
            patch = json.dumps([{"op": "replace", "path": "/spec", "value": after}])
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}
        content = json.dumps({name: review[name] for name in ("apiVersion", "kind")} | {"response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
