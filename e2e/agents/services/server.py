"""Fake services for the sample agents in one small server: a model, a ledger of side effects, and reports.

- ``POST /v1/chat/completions``: OpenAI-compatible; every call is counted per agent (header ``X-Agent``) when it
  starts and when its answer has been written. ``GET /calls``: ``{agent: {key: [started, completed]}}``.
- ``POST /effects`` ``{"id", "agent", "body"}``: books a side effect and counts how often each id was received. It does
  not deduplicate, so that repeated effects can be detected. ``GET /effects``: ``{agent: {id: {"count", "body"}}}``.
- ``POST /reports`` any JSON object with ``agent``: kept in order with its time of arrival. ``GET /reports?agent=NAME``.

Standard library only. The state is in memory, so the server must run on a node that is not drained.
"""

import json
import os
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from scripted import completion, key

BODY_MAX_BYTES = 4 << 20


class FakeServices:
    """The recorded calls, effects and reports, protected by one lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: dict[str, dict[str, list[int]]] = defaultdict(dict)
        self.effects: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self.reports: list[dict[str, Any]] = []

    def call(self, agent: str, request: str, index: int) -> None:
        """Count a call as started (index 0) or completed (index 1)."""
        with self.lock:
            self.calls[agent].setdefault(request, [0, 0])[index] += 1

    def effect(self, agent: str, identifier: str, body: Any) -> int:
        """Book a side effect; return how often this id has been received."""
        with self.lock:
            entry = self.effects[agent].setdefault(identifier, {"count": 0, "body": body})
            entry["count"] += 1
            return int(entry["count"])

    def report(self, body: dict[str, Any]) -> None:
        """Record an agent's report."""
        with self.lock:
            self.reports.append({**body, "received": time.time()})


class Handler(BaseHTTPRequestHandler):
    """Handler of the routes listed in the module's docstring."""

    protocol_version = "HTTP/1.1"
    services: FakeServices
    think_seconds: float

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", "0"))
        if size > BODY_MAX_BYTES:
            self._send(413, {"error": "too large"})
            return
        try:
            body = json.loads(self.rfile.read(size))
        except ValueError:
            self._send(400, {"error": "not JSON"})
            return
        if self.path == "/v1/chat/completions":
            agent = self.headers.get("X-Agent", "unknown")
            request = key(body["model"], body["messages"])
            self.services.call(agent, request, 0)
            time.sleep(self.think_seconds)
            self._send(200, completion(body["model"], body["messages"]))
            self.services.call(agent, request, 1)
        elif self.path == "/effects":
            self._send(200, {"count": self.services.effect(body["agent"], body["id"], body.get("body"))})
        elif self.path == "/reports":
            self.services.report(body)
            self._send(200, {})
        else:
            self._send(404, {"error": "no such path"})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        with self.services.lock:
            if url.path == "/calls":
                text: Any = self.services.calls
            elif url.path == "/effects":
                text = self.services.effects
            elif url.path == "/reports":
                agent = parse_qs(url.query).get("agent", [None])[0]
                text = [report for report in self.services.reports if agent in (None, report.get("agent"))]
            elif url.path == "/healthz":
                text = {"ok": True}
            else:
                text = None
            data = json.dumps(text).encode()
        self._send(200 if text is not None else 404, data)

    def _send(self, status: int, body: dict[str, Any] | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the recorded calls, effects and reports are enough."""


def serve(port: int, think_seconds: float, host: str = "") -> ThreadingHTTPServer:
    """Return a server that is bound to the port; the caller calls ``serve_forever``."""
    handler = type("BoundHandler", (Handler,), {"services": FakeServices(), "think_seconds": think_seconds})
    return ThreadingHTTPServer((host, port), handler)


if __name__ == "__main__":
    serve(int(os.environ.get("PORT", "8000")), float(os.environ.get("THINK_SECONDS", "0.2"))).serve_forever()
