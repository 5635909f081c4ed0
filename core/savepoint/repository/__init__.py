"""The format of docs/repository-format.md: written, read, verified, collected.

It needs zstandard and cryptography (one door each: ``compress`` and ``seal``) and does no I/O but through the protocols
of ``savepoint.storage``; only ``restore`` also writes files. It knows neither Kubernetes nor sockets.
"""
