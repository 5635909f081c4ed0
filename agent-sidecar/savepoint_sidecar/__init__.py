"""The part of Savepoint that runs beside an agent: native sidecar, init container and local supervisor.

It captures, checkpoints and restores one agent's state, by one write path. It knows neither the Kubernetes API nor a
bucket's credentials: its identity, what it may write and what it restores come from an ``Authority``, which is the
operator's control channel or a directory store.
"""
