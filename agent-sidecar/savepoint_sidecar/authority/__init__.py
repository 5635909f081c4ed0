"""What grants epochs, orders checkpoints and commits them: the operator, or a directory store on a laptop.

It takes no checkpoint and restores nothing; ``lifecycle`` and ``restore_container`` do.
"""
