"""A training loop: weights, momentum and random state survive, so the loss curve is that of an undisturbed run."""

import sys
import time
from typing import Any

import numpy as np
import savepoint

STEPS, RATE, MOMENTUM = 60, 0.05, 0.9
pause = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1

random = np.random.default_rng(7)
inputs = random.standard_normal((256, 16))
targets = inputs @ random.standard_normal(16)
weights, velocity = np.zeros(16), np.zeros(16)


def load_weights(arrays: Any) -> None:
    weights[...] = arrays["weights"]


def load_velocity(arrays: Any) -> None:
    velocity[...] = arrays["velocity"]


agent = savepoint.connect()
agent.tensors("model", lambda: {"weights": weights}, load_weights, kind="ModelWeights")
agent.tensors("optimizer", lambda: {"velocity": velocity}, load_velocity, kind="OptimizerState")
progress = agent.document("progress", default={"losses": [], "random": random.bit_generator.state})
random.bit_generator.state = progress["random"]
print(f"starting at step {len(progress['losses'])}", flush=True)

for _ in agent.loop("steps", range(STEPS)):
    rows = random.integers(0, len(inputs), 32)
    error = inputs[rows] @ weights - targets[rows]
    velocity *= MOMENTUM
    velocity -= RATE * inputs[rows].T @ error / len(rows)
    weights += velocity
    progress["losses"].append(float(np.mean(error**2)))
    progress["random"] = random.bit_generator.state
    time.sleep(pause)
print("losses", " ".join(f"{loss:.17g}" for loss in progress["losses"]), flush=True)
agent.finish()
