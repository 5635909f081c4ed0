"""Random trees, edited while checkpoints of them are taken, and compared with what a witness outside recorded.

``python -m tests.soak --rounds 2000 --seed 1 --on DIR`` runs it on the file system of a folder.
"""
