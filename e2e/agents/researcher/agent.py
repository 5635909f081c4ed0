"""Sample agent with the SDK, which reads a list of documents in a nested loop and has every kind of state.

Its state is a conversation with a model server, a retrieval index, a small network with its optimizer state, and side
effects that are booked in a ledger under stable ids. After every turn it reports its position and a digest of its whole
state to ``/reports`` of the fake services; the demo and the end-to-end tests check these reports. The unprotected twin
is the same program in a pod that does not opt in.
"""

import hashlib
import json
import os
import time
import urllib.request
from typing import Any

import savepoint
from state import QUESTIONS, Network


class Services:
    """Client of the fake services: the agent's only calls to the outside."""

    def __init__(self, url: str, agent: str) -> None:
        self._url, self._agent = url, agent

    def complete(self, messages: list[dict[str, str]]) -> str:
        """Request one chat completion and return its text."""
        reply = self._post("/v1/chat/completions", {"model": "scripted-1", "messages": messages})
        return str(reply["choices"][0]["message"]["content"])

    def book(self, identifier: str, body: str) -> int:
        """Book a side effect under a stable id; return how often the ledger has received it."""
        return int(self._post("/effects", {"id": identifier, "agent": self._agent, "body": body})["count"])

    def booked(self, identifier: str) -> bool:
        """Return whether the ledger has seen this id."""
        with urllib.request.urlopen(f"{self._url}/effects", timeout=30) as answer:
            return identifier in json.loads(answer.read()).get(self._agent, {})

    def report(self, **fields: Any) -> None:
        """Report the agent's position, also as a line on standard output."""
        line = {"agent": self._agent, "pod": os.environ.get("HOSTNAME", ""), "time": time.time(), **fields}
        print(json.dumps(line), flush=True)
        self._post("/reports", line)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-Agent": self._agent},
        )
        for pause in (0.2, 0.5, 1, 2, 4, 8, None):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    result: dict[str, Any] = json.loads(answer.read())
                    return result
            except OSError:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")


def main() -> None:
    name = os.environ.get("AGENT", "researcher")
    mebibytes, stride = int(os.environ.get("STATE_MIB", "256")), int(os.environ.get("ROW_STRIDE", "25"))
    documents = [f"doc-{number:04d}" for number in range(int(os.environ.get("DOCUMENTS", "2000")))]
    think = float(os.environ.get("TURN_SECONDS", "0.2"))
    services = Services(os.environ["SERVICES_URL"], name)

    began = time.monotonic()
    agent = savepoint.connect()
    network = Network.fresh(mebibytes)

    def load_weights(arrays: Any) -> None:
        network.weights[...] = arrays["weights"]
        network.forget_digests()

    def load_momentum(arrays: Any) -> None:
        network.momentum[...] = arrays["momentum"]
        network.forget_digests()

    agent.tensors("weights", lambda: {"weights": network.weights}, load_weights, kind="ModelWeights")
    agent.tensors("optimizer", lambda: {"momentum": network.momentum}, load_momentum, kind="OptimizerState")
    memory = agent.document("memory", default={"turn": 0, "conversation": [], "index": {}})

    def conversation() -> str:
        return hashlib.sha256(json.dumps(memory["conversation"]).encode()).hexdigest()

    def digest() -> str:
        text = json.dumps(memory, sort_keys=True).encode()
        return hashlib.sha256(text + network.digest().encode()).hexdigest()

    restored = agent.restored
    services.report(
        event="start",
        turn=memory["turn"],
        digest=digest(),
        restored=restored.checkpoint if restored else None,
        startSeconds=round(time.monotonic() - began, 3),
    )
    for (
        effect
    ) in agent.uncertain():  # sent but not confirmed before the process ended; the ledger shows whether it arrived
        arrived = services.booked(effect.id)
        services.report(event="uncertain", turn=memory["turn"], digest=digest(), effect=effect.id, arrived=arrived)
        if arrived:
            effect.confirm(1)
        else:
            effect.retry()
    for document in agent.loop("documents", documents, key=lambda item: item):
        for question in agent.loop("questions", QUESTIONS, key=lambda item: item):
            turn = memory["turn"]
            prompt = {"role": "user", "content": f"{document}: {question}? (turn {turn})"}
            reply = agent.step("ask", services.complete, [*memory["conversation"][-6:], prompt])
            memory["conversation"] += [prompt, {"role": "assistant", "content": reply}]
            memory["index"].setdefault(reply.split()[0], []).append(f"{document}/{question}")
            network.train(turn, stride)
            agent.effect("book", lambda op, text=reply: services.book(op.id, text))  # type: ignore[misc]
            memory["turn"] = turn + 1
            services.report(
                event="turn",
                turn=turn + 1,
                digest=digest(),
                conversation=conversation(),
                document=document,
                question=question,
            )
            time.sleep(think)
    agent.finish()
    services.report(event="finished", turn=memory["turn"], digest=digest())


if __name__ == "__main__":
    main()
