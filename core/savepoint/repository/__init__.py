"""The repository format of docs/repository-format.md: write, read, verify and collect.

It needs zstandard and cryptography, each imported in one module (``compress`` and ``seal``), and does no I/O except
through the protocols of ``savepoint.storage``; only ``restore`` also writes files. It does not depend on Kubernetes or
sockets.
"""
