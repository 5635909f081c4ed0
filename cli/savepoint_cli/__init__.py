"""The command line: ``savepoint`` for a laptop, ``kubectl-savepoint`` for a cluster. It prints; nothing else does."""
