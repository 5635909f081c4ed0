"""Answers of the scripted model: a pure function of the request. Shared by the model server and by the checks.

It is not a language model: it is deterministic, so that an interrupted run can be compared with an uninterrupted one.
"""

import hashlib
import json
from typing import Any

Message = dict[str, str]


def key(model: str, messages: list[Message]) -> str:
    """Return the key of a request: equal requests have equal keys."""
    return hashlib.sha256(json.dumps([model, messages], sort_keys=True).encode()).hexdigest()


def answer(model: str, messages: list[Message]) -> str:
    """Return 24 words and a short digest that depend on every byte of the request."""
    digest = key(model, messages)
    words = ("alpha", "bravo", "delta", "gamma", "kappa", "lambda", "omega", "sigma", "theta", "zeta", "iota", "rho")
    return " ".join(words[int(digest[index], 16) % len(words)] for index in range(24)) + f" [{digest[:12]}]"


def completion(model: str, messages: list[Message]) -> dict[str, Any]:
    """Return the body of an OpenAI-compatible chat completion."""
    text = answer(model, messages)
    return {
        "id": "chatcmpl-" + key(model, messages)[:24],
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": len(messages), "completion_tokens": 24, "total_tokens": len(messages) + 24},
    }
