"""The authority that grants epochs and that orders and commits checkpoints: the operator, or a directory store.

It takes no checkpoint and restores nothing; ``lifecycle`` and ``restore_container`` do.
"""
