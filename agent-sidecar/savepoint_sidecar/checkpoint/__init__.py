"""One checkpoint from the first read to the commit, and what is remembered of it for the next one.

It does not decide when a checkpoint is taken; ``lifecycle`` and the authority do.
"""
