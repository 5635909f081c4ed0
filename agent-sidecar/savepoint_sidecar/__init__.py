"""The part of Savepoint beside an agent: native sidecar, init container and local supervisor, over one write path.

It captures, checkpoints and restores one agent's state. It knows neither Kubernetes' API nor a bucket's credentials:
who it is, what it may write and what it restores come from an ``Authority``, which is the operator's control channel
or a directory store.
"""
