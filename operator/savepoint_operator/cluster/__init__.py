"""The adapter to the Kubernetes API server: connection, requests, watches, Events, TokenReview and parsing.

The only package that imports the ``kubernetes`` client. It raises ``cluster.errors`` and decides nothing.
"""
