"""The command line: ``savepoint`` for agents on this machine and for stores, ``kubectl savepoint`` for a cluster.

It parses arguments, prints and sets exit statuses. It has no rules of its own: ``savepoint run`` drives the sidecar's
code, ``log`` and ``verify`` read through ``savepoint.repository``, and ``kubectl savepoint`` runs the user's kubectl.
"""
